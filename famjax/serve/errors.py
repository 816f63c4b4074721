"""The API's error object."""

from typing import Any


class ApiError(Exception):
    """An error that is sent to the client instead of an answer: what is wrong and what to do, the name of the invalid
    field if it is a field, a machine-readable code, and the seconds after which the client may repeat the request."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The API's error object, as the JSON body of a response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
