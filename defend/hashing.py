"""Hashes of data and of code: canonical JSON, cache keys, tensors, syntax trees."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def canonical_json(data: Any) -> str:
    """Return the one JSON text for this data: sorted keys, no spaces. NaN raises ValueError."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def cache_key(inputs: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical JSON of everything that decides a result."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()


def tensor_sha256(*tensors: Tensor) -> str:
    """Return the sha256 of the tensors' dtypes, shapes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(_to_numpy(tensor.detach().cpu().contiguous()).data)
    return digest.hexdigest()


def _to_numpy(tensor: Tensor) -> Any:
    """Return the values, as bytes where numpy has no such type: bfloat16 and float8."""
    import torch

    if tensor.dtype == torch.bfloat16 or "float8" in str(tensor.dtype):
        tensor = tensor.flatten().view(torch.uint8)
    return tensor.numpy()


# Code, without its prose.


def hash_source(source: str) -> str:
    """Return the hash of this Python text's syntax tree without prose."""
    return hash_tree(ast.parse(source))


def hash_tree(tree: ast.Module) -> str:
    """Return the hash of this tree without prose, which is removed from it."""
    return hashlib.sha256(ast.dump(_WithoutProse().visit(tree)).encode()).hexdigest()


class _WithoutProse(ast.NodeTransformer):
    """Drop docstrings, and the texts of what is raised."""

    def visit(self, node: ast.AST) -> ast.AST:
        self.generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert isinstance(body, list)
            if body and _is_text(body[0]):
                del body[0]
        if isinstance(node, ast.Raise):
            for child in ast.walk(node):
                _blank_texts(child)
        return node


def _is_text(statement: ast.stmt) -> bool:
    is_constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return is_constant and isinstance(statement.value.value, str)  # type: ignore[attr-defined]


def _blank_texts(node: ast.AST) -> None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node.value = ""
    if isinstance(node, ast.JoinedStr):
        node.values = []
