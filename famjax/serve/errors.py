"""The API's error object."""

from typing import Any


class ApiError(Exception):
    """The error that a client gets instead of an answer.

    Args:
      status: of HTTP.
      message: what is wrong and what to do.
      param: the field that is wrong.
      code: a word for programs.
      retry_after: seconds after which the same request may be taken.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """As the API writes it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
