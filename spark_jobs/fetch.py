"""Generates raw data that are missing, or downloads them from their publisher."""

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from pnfrec_dist.config.source_settings import SourceSettings
from pnfrec_dist.errors import InputError
from pnfrec_dist.files.atomic import replaced
from spark_jobs.synthetic import write_ratings


def raw_directory(name: str) -> Path:
    """The default directory for the raw files of a data set; downloads go there, too."""
    return Path("data/raw") / name


def obtain_raw(name: str, source: SourceSettings, titles: str = "") -> None:
    """Generates or downloads the raw files into data/raw/<name>, and the file `titles` if it comes with them.

    Raises InputError if the source has neither a generator nor a url.
    """
    directory = raw_directory(name)
    if source.generator:
        print(f"generating {directory / source.files}", flush=True)
        write_ratings(directory / source.files)
    elif source.url:
        fetch(source, directory, titles)
    else:
        raise InputError(f"no raw data: put {source.files!r} into {directory}, or pass RAW=<directory that holds it>")


def fetch(source: SourceSettings, directory: Path, titles: str) -> None:
    """Downloads the official file, checks its md5, and puts it (or the matching members of a zip) into `directory`."""
    manual = f"download {source.url}, put {source.files!r} into {directory}, or pass RAW=<directory that holds it>"
    print(f"fetching {source.url}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pnfrec-fetch-") as scratch:
        fetched = Path(scratch) / source.url.rpartition("/")[2]
        try:
            with urllib.request.urlopen(source.url, timeout=30) as reply, fetched.open("wb") as out:
                shutil.copyfileobj(reply, out)
        except (OSError, urllib.error.URLError) as error:
            raise InputError(f"could not fetch the raw data ({error}); {manual}") from error
        with fetched.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if source.md5 and md5 != source.md5:
            raise InputError(f"{source.url} has md5 {md5}, expected {source.md5}; {manual}")
        directory.mkdir(parents=True, exist_ok=True)
        if fetched.suffix != ".zip":
            _place(fetched, directory / fetched.name)
            return
        try:
            with zipfile.ZipFile(fetched) as zipped:
                for member in zipped.infolist():
                    name = Path(member.filename).name
                    if not member.is_dir() and (name == titles or Path(name).match(source.files)):
                        unpacked = Path(scratch) / "member"
                        with zipped.open(member) as content, unpacked.open("wb") as out:
                            shutil.copyfileobj(content, out)
                        _place(unpacked, directory / name)
        except zipfile.BadZipFile as error:
            raise InputError(f"{source.url} did not return a zip archive ({error}); {manual}") from error


def _place(file: Path, to: Path) -> None:
    """Copies into place in one move."""
    with replaced(to, writer=os.getpid()) as draft:
        shutil.copyfile(file, draft)
