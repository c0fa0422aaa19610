"""Errors: RFC 9457 problem documents on our own routes, the Open Inference Protocol's error objects on its routes."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import JSONResponse


class Problem(Exception):
    """Ends a request with an error.

    Args:
        status: HTTP status.
        detail: what is wrong with this request, and what was expected.
        headers: to send along, `Retry-After` for instance.
        field: which part of the request is wrong.
    """

    def __init__(
        self, status: int, detail: str, *, headers: dict[str, str] | None = None, field: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.field = status, detail, headers, field

    def response_for(self, path: str) -> JSONResponse:
        """The answer to a request for this path."""
        if path.startswith("/v2"):
            return JSONResponse({"error": self.detail}, self.status, self.headers)
        body: dict[str, object] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.field is not None:
            body["field"] = self.field
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")
