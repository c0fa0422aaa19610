"""OpenAPI: schemas of bodies and answers that FastAPI cannot derive from the routes."""

from __future__ import annotations

from typing import Any

from metaspec_server.http.auth import roles_for
from metaspec_server.http.rest_codec import JSON, NPY, RAW

__all__ = [
    "ANSWERS",
    "GDSII_ANSWERS",
    "GRADIENT_REQUEST",
    "INFER_ANSWERS",
    "INFER_BODY",
    "PREDICT_REQUEST",
    "READ_GDSII_BODY",
    "WRITE_GDSII_BODY",
    "add_security",
    "oip_errors",
]

_NO_KEY = "No valid API key, and the server requires one."

_STRUCTURES = {
    "description": "(y, x), (N, y, x) or (N, 1, y, x) nested lists, of the pixels of the model's process: 1 = solid, 0 = void, "
    "densities between",
    "type": "array",
    "items": {},
}
_FIELDS: dict[str, Any] = {
    "structures": _STRUCTURES,
    "packed": {
        "type": "string",
        "format": "byte",
        "description": "base64 of bit-packed structures, y * x / 8 bytes each",
    },
    "wavelengths_nm": {"type": "array", "items": {"type": "number"}, "minItems": 1},
    "channels": {
        "description": "channels of the answer: detectors and, in models over symmetric images, the spread of predictions",
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
    },
}
_VALUES: dict[str, Any] = {
    "description": "a condition that the model takes, by its name, such as distance_um: a number for all structures, or a list "
    "of one for each; of a vector, a list of numbers for all, or a list for each. The default where there is none.",
    "anyOf": [{"type": "number"}, {"type": "array", "items": {}}],
}
_COTANGENT = {
    "description": "(N, channels, wavelengths); the gradient is that of the sum of cotangent * spectra",
    "type": "array",
    "items": {},
}


def _body(fields: dict[str, Any], required: list[str], others: dict[str, Any] | bool) -> dict[str, Any]:
    schema = {
        "type": "object",
        "additionalProperties": others,
        "properties": fields,
        "required": required,
        "oneOf": [{"required": ["structures"]}, {"required": ["packed"]}],
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {JSON: {"schema": schema}, NPY: binary, RAW: binary}
    return {"requestBody": {"required": True, "content": content}}


_PROBLEM: dict[str, Any] = {
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "field": {"type": "string"},
                },
            }
        }
    }
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The result, in the format that Accept asks for.", "content": {NPY: {}, RAW: {}}},
    400: {"description": "The body cannot be decompressed.", **_PROBLEM},
    401: {"description": _NO_KEY, **_PROBLEM},
    404: {"description": "No such model or version.", **_PROBLEM},
    406: {"description": "No format that Accept allows.", **_PROBLEM},
    408: {"description": "The body arrived too slowly.", **_PROBLEM},
    413: {"description": "Too many structures, bytes, or numbers in JSON.", **_PROBLEM},
    415: {"description": "Unknown Content-Type or Content-Encoding.", **_PROBLEM},
    422: {
        "description": "Not a structure, cotangent, wavelength, channel or condition, or an unknown name in the query. Names "
        "the field.",
        **_PROBLEM,
    },
    500: {"description": "The engine failed.", **_PROBLEM},
    503: {"description": "The queue or the memory for requests is full. See Retry-After.", **_PROBLEM},
    504: {"description": "Not finished in time.", **_PROBLEM},
}

_CONDITIONS: dict[str, Any] = {
    "parameters": [
        {
            "name": "values",
            "in": "query",
            "description": "Values of conditions for all structures, each by the name that the model gives it "
            "(`parameters.conditions` of `/v2/models/{model}`): `?distance_um=1.25`, or for a vector `?incidence=10,-5`.",
            "style": "form",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
            "example": {"distance_um": "1.25"},
        }
    ]
}
PREDICT_REQUEST = _body(_FIELDS, [], _VALUES) | _CONDITIONS
GRADIENT_REQUEST = _body(_FIELDS | {"cotangent": _COTANGENT}, ["cotangent"], _VALUES) | _CONDITIONS

_BINARY = {"schema": {"type": "string", "format": "binary"}}
GDSII_ANSWERS: dict[int | str, dict[str, Any]] = {
    **{status: ANSWERS[status] for status in (400, 401, 404, 408, 413, 415, 500, 503)},
    200: {"description": "The structure, or the layout.", "content": {NPY: _BINARY, RAW: _BINARY}},
    422: {"description": "Not a layout of this device, or not one binary structure. Names the field.", **_PROBLEM},
    501: {"description": "gdstk is not installed where the server runs.", **_PROBLEM},
}
READ_GDSII_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": {RAW: _BINARY}}}
WRITE_GDSII_BODY = _body(_FIELDS, [], False)

_ERROR: dict[str, Any] = {
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
        }
    }
}


def oip_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error answers of a route of the Open Inference Protocol; 400 and 401 are added to all.

    Args:
        statuses: HTTP statuses of the route.
    """
    descriptions = {
        400: "Not a valid request of the protocol, or not one for this model.",
        401: _NO_KEY,
        403: "Callers may not load and unload models.",
        404: "No such model or version.",
        408: "The body arrived too slowly.",
        413: "Too many structures, bytes, or numbers in JSON.",
        415: "Unknown Content-Encoding.",
        422: "Values that are not those of a structure or a condition, or a gradient that the dtype cannot hold.",
        500: "The engine failed.",
        503: "Not ready, or the queue or the memory for requests is full. See Retry-After.",
        504: "Not finished in time.",
    }
    return {status: {"description": descriptions[status], **_ERROR} for status in (400, 401, *statuses)}


INFER_ANSWERS = oip_errors(404, 408, 413, 415, 422, 500, 503, 504) | {
    200: {"description": "The outputs.", "content": {JSON: {}, RAW: {}}}
}
_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "inputs": {"type": "array", "items": _TENSOR},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                        "parameters": {"type": "object"},
                    },
                }
            },
            RAW: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the server requires one."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key in another header."},
}


def add_security(document: dict[str, Any]) -> None:
    """Add to an OpenAPI document how callers send their key, and the role that each route needs."""
    document.setdefault("components", {})["securitySchemes"] = _SECURITY_SCHEMES
    for path, operations in document["paths"].items():
        error = _ERROR if path.startswith("/v2") else _PROBLEM
        for method, operation in operations.items():
            if not (roles := roles_for(method.upper(), path)):
                continue
            operation["security"] = [{}, *({name: []} for name in _SECURITY_SCHEMES)]
            needed = " or ".join(f"`{role}`" for role in roles)
            operation["description"] = f"{operation.get('description', '')}\n\nAPI keys need the role {needed}.".strip()
            operation["responses"].setdefault("401", {"description": _NO_KEY, **error})
            operation["responses"].setdefault("403", {"description": f"The API key has no role {needed}.", **error})
