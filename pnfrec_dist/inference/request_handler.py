"""Answers HTTP requests for lists as MLflow's server does: {"inputs": [query, ...]} -> {"predictions": [answer, ...]}.

Requests that come together are ranked together.
"""

import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pnfrec_dist.errors import InputError, first_line
from pnfrec_dist.inference.artifact import IN_MLFLOW, load_exported
from pnfrec_dist.inference.loaded_model import Model
from pnfrec_dist.inference.pyfunc import Query, answers_to, parsed_query, refusal_of_gamma
from pnfrec_dist.inference.trained_model import MLMODEL, trained_directory

OK, WRONG, FAILED = 200, 400, 500


def load_handler(reference: str) -> Callable[[list[bytes]], list[tuple[int, bytes]]]:
    """A function from bodies of requests to the status and content of each answer.

    reference: see open_trained. Raises InputError if there is no such model.
    """
    with tempfile.TemporaryDirectory(prefix="pnfrec-") as scratch:
        directory = trained_directory(reference, Path(scratch))
        if not (directory / MLMODEL).is_file():
            raise InputError(f"{reference} has only a checkpoint and no model to serve; name a run that has ended")
        model = Model(load_exported(directory / IN_MLFLOW))

    def answer(bodies: list[bytes]) -> list[tuple[int, bytes]]:
        asked = [_queries(body, model) for body in bodies]
        together = [query for queries in asked if isinstance(queries, list) for query in queries]
        try:
            answers = iter(answers_to(model, together))
        except Exception as error:  # a fault of this program must not end the replica; the client gets status 500
            logging.getLogger(__name__).exception("requests were not answered")
            told = FAILED, _json({"error_code": "INTERNAL_ERROR", "message": first_line(error)})
            return [(WRONG, queries) if isinstance(queries, bytes) else told for queries in asked]
        found = []
        for queries in asked:
            if isinstance(queries, bytes):
                found.append((WRONG, queries))
            else:
                found.append((OK, _json({"predictions": [next(answers).model_dump() for _ in queries]})))
        return found

    return answer


def _queries(body: bytes, model: Model) -> list[Query] | bytes:
    """The queries of a request, or the content of the answer that says what is wrong with it."""
    try:
        content = json.loads(body)
    except ValueError as error:
        return _refused("BAD_REQUEST", f"the request is not valid JSON ({error})")
    if not isinstance(content, dict) or content.keys() != {"inputs"} or not isinstance(content["inputs"], list):
        return _refused("BAD_REQUEST", 'the request must be {"inputs": [query, ...]}')
    try:
        queries = [parsed_query(entry) for entry in content["inputs"]]
    except InputError as error:
        return _refused("INVALID_PARAMETER_VALUE", str(error))
    told = next((told for query in queries if (told := refusal_of_gamma(model, query))), "")
    return _refused("INVALID_PARAMETER_VALUE", told) if told else queries


def _refused(code: str, message: str) -> bytes:
    return _json({"error_code": code, "message": message})


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
