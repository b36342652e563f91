"""Who is calling on the builder's side: told by the token alone, so that it costs no query of its own."""

import hmac
from dataclasses import dataclass

from app.context import Context
from app.errors import forbidden, unauthorized
from app.ids import is_id
from app.models import Run


@dataclass(frozen=True)
class Caller:
    """Whoever has a run's token, made with one of our keys; ``is_of`` sees whether it is the key that the run has."""

    run_id: str
    key_id: str

    def is_of(self, run: Run | None) -> Run:
        """Return the run that was read for it; 401 when there is none, or its token is another key's."""
        if run is None or run.key_id != self.key_id:
            raise unauthorized("This run token is not valid.")
        return run


def authenticate(context: Context, run_id: str, token: str) -> Caller:
    """Return whose token this is. 401: no good token; 403: a good token of another run."""
    _, _, rest = token.partition("slr.")
    owner, _, _ = rest.partition(".")
    if not is_id(owner, "run"):
        raise unauthorized("Send the run's token as `Authorization: Bearer slr.…`.")
    for key_id in context.keyring.keys:
        if hmac.compare_digest(context.keyring.run_token(owner, key_id).encode(), token.encode()):
            if owner != run_id:
                raise forbidden("This run token belongs to another run.", reason="foreign_run")
            return Caller(run_id, key_id)
    raise unauthorized("This run token is not valid.")
