"""How the embedded registry answers what went wrong: the JSON of the OCI distribution specification."""

import errno
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ExceptionHandler

from app.images.errors import Fault, ImageInvalid, ReferenceInvalid


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"errors": [{"code": code, "message": message}]}, status, headers)


async def _fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return _error(error.status, error.code, error.message, error.headers)


async def _name_invalid(request: Request, error: Exception) -> Response:
    return _error(400, "NAME_INVALID", str(error))


async def _broken(request: Request, error: Exception) -> Response:
    return _error(500, "UNKNOWN", str(error))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, "UNSUPPORTED", str(error.detail), error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    return _error(400, "BLOB_UPLOAD_INVALID", "the connection was cut")


async def _disk(request: Request, error: Exception) -> Response:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _error(507, "DENIED", "the registry's disk is full")
    raise error


HANDLERS: Mapping[type[Exception], ExceptionHandler] = {
    Fault: _fault,
    ReferenceInvalid: _name_invalid,
    ImageInvalid: _broken,
    HTTPException: _http,
    ClientDisconnect: _gone,
    OSError: _disk,
}
