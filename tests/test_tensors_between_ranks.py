"""No tensor that is created on the CPU is sent between ranks: NCCL only sends tensors of a GPU, and no GPU may be here.

The walk follows a tensor through assignments within one function, in the order of the source.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pnfrec_dist"
WORLDS = ("world", "shards")
"""Variables and attributes that hold a World; its own methods also use self."""
EXCHANGES = ("sum", "max", "gather_rows", "sum_rows", "exchange")
NO_OTHER_OBJECT_HAS = ("gather_rows", "sum_rows", "exchange")
OF_TORCH = ("_all_gather", "_reduce_scatter")
CREATE = {"tensor", "as_tensor", "from_numpy", "zeros", "ones", "empty", "full", "arange", "rand", "randn", "randint"}
JOIN = ("cat", "stack", "hstack", "vstack")
STEPS = ast.Assign | ast.AnnAssign | ast.NamedExpr | ast.Call
MOVE, LEAVE_TORCH = ("to", "cuda"), ("tolist", "item", "numpy", "nbytes", "shape")


def is_cpu(node: ast.AST | None, cpu_names: set[str]) -> bool:
    """Whether the expression is a tensor that was created on the CPU and not moved."""
    match node:
        case ast.Name(id=name):
            return name in cpu_names
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)) if name in CREATE:
            return not any(keyword.arg == "device" for keyword in node.keywords)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)) if name in JOIN:
            return any(is_cpu(argument, cpu_names) for argument in node.args)
        case ast.Call(func=ast.Attribute(attr="cpu")):
            return True
        case ast.Call(func=ast.Attribute(value=owner, attr="to"), args=[ast.Attribute(value=ast.Name(id="torch"))]):
            return is_cpu(owner, cpu_names)  # another dtype
        case ast.Call(func=ast.Attribute(value=owner, attr=name)):
            return name not in (*MOVE, *LEAVE_TORCH) and is_cpu(owner, cpu_names)
        case ast.Attribute(value=owner, attr=name):
            return name not in LEAVE_TORCH and is_cpu(owner, cpu_names)
        case ast.Subscript(value=inner) | ast.UnaryOp(operand=inner) | ast.Starred(value=inner):
            return is_cpu(inner, cpu_names)
        case ast.NamedExpr(value=inner) | ast.ListComp(elt=inner) | ast.GeneratorExp(elt=inner):
            return is_cpu(inner, cpu_names)
        case ast.BinOp(left=one, right=other) | ast.IfExp(body=one, orelse=other):
            return is_cpu(one, cpu_names) or is_cpu(other, cpu_names)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return any(is_cpu(part, cpu_names) for part in parts)
    return False


def assign(target: ast.AST, value: ast.AST | None, cpu_names: set[str]) -> None:
    if isinstance(target, ast.Tuple | ast.List):
        each = value.elts if isinstance(value, ast.Tuple | ast.List) else [value] * len(target.elts)
        for part, own in zip(target.elts, each, strict=False):
            assign(part, own, cpu_names)
    elif isinstance(target, ast.Name):
        (cpu_names.add if is_cpu(value, cpu_names) else cpu_names.discard)(target.id)


def sends(call: ast.Call) -> bool:
    """Whether the call is an exchange between ranks."""
    match call.func:
        case ast.Name(id=name):
            return name in OF_TORCH
        case ast.Attribute(value=ast.Name(id="dist") | ast.Attribute(attr="distributed")):
            return True
        case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
            return name in EXCHANGES and (owner in (*WORLDS, "self"))
    return False


def faults(source: str) -> Iterator[str]:
    """Each exchange of a tensor that the same function created on the CPU, as 'line: call'."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            cpu_names: set[str] = set()
            steps = [n for n in ast.walk(function) if isinstance(n, STEPS)]
            # A call ends before, or where, the assignment of its result ends.
            for step in sorted(steps, key=lambda n: (n.end_lineno, n.end_col_offset, not isinstance(n, ast.Call))):
                if isinstance(step, ast.Call):
                    given = [*step.args, *(keyword.value for keyword in step.keywords)]
                    if sends(step) and any(is_cpu(argument, cpu_names) for argument in given):
                        yield f"{step.lineno}: {ast.unparse(step)}"
                else:
                    for target in step.targets if isinstance(step, ast.Assign) else [step.target]:
                        assign(target, step.value, cpu_names)


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_no_tensor_of_the_cpu_is_sent(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert not list(faults(source))
    for node in ast.walk(ast.parse(source)):  # the walk knows Worlds by their names
        if isinstance(node, ast.arg) and node.annotation and "World" in ast.unparse(node.annotation).split(" | "):
            assert node.arg in (*WORLDS, "_"), f"line {node.lineno}: a World named {node.arg}; add it to WORLDS"
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in NO_OTHER_OBJECT_HAS:
            assert sends(node), f"line {node.lineno}: add the owner of the method to WORLDS"


FAULTY = [
    "world.sum(torch.zeros(3))",
    "x = torch.tensor([1, 2]); self.world.max(x)",
    "x, n = torch.from_numpy(array), 3; table.shards.gather_rows(x, [n])",
    "a, b = (torch.from_numpy(v) for v in arrays); shards.exchange(b, [1], [1])",
    "world.sum(torch.cat([counts.to(world.device), torch.ones(1)]))",
    "x = torch.arange(3).double(); y = x[1:] * 2; dist.all_reduce(y)",
    "x = torch.zeros(3).to(torch.float64); world.sum(x)",
    "_all_gather(torch.empty(3, device=device), tensor=torch.empty(1))",
    "x = y.to(device); x = x.cpu(); shards.sum_rows(x, sizes)",
    "x: Tensor = torch.full((2,), 1.0); torch.distributed.broadcast(x, 0)",
    "(x := torch.tensor(1)).add_(1); world.sum(x)",
]
RIGHT = [
    "world.sum(torch.zeros(3, device=world.device))",
    "x = torch.tensor([1, 2]); world.sum(torch.cat([x, y]).to(world.device))",
    "x = torch.from_numpy(array).to(device); world.max(x)",
    "x = torch.zeros(3); x = x.cuda(); dist.all_reduce(x)",
    "shards.exchange(rows, torch.tensor([1, 2]).tolist(), [1])",
    "x = torch.ones(2); x.sum(); x.max()",
]


@pytest.mark.parametrize(("body", "found"), [*((body, 1) for body in FAULTY), *((body, 0) for body in RIGHT)])
def test_planted_faults_are_found_and_nothing_else(body: str, found: int) -> None:
    assert len(list(faults(f"def f(world):\n    {body}\n"))) == found
