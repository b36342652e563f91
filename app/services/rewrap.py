"""After a rotation of the secret keys: what the old ones sealed is sealed anew with the first, so that they can be taken away."""

from sqlalchemy import func, select, update

from app.context import Context
from app.db import alone
from app.lifecycle import OPEN_RUN
from app.models import PullCredential, Run, SecretVersion
from app.secrets import Sealed

BATCH = 200


async def rewrap(context: Context) -> int:
    """Seal secrets anew that another key than the first has sealed, batch by batch; returns how many.

    Raises KeysError when a secret's key is not there any more; nothing is lost, and the message says which key to bring back.
    """
    total, active = 0, context.keyring.active
    while True:
        async with context.sessions.begin() as session:
            others = select(SecretVersion).where(SecretVersion.key_id != active).limit(BATCH)
            rows = (await session.execute(others.with_for_update(skip_locked=True))).scalars().all()
            for row in rows:
                value = context.keyring.open(Sealed(row.key_id, row.nonce, row.ciphertext), about=row.id)
                sealed = context.keyring.seal(value, about=row.id)
                fresh = {"key_id": sealed.key_id, "nonce": sealed.nonce, "ciphertext": sealed.ciphertext}
                await session.execute(update(SecretVersion).where(SecretVersion.id == row.id).values(**fresh))
        total += len(rows)
        if len(rows) < BATCH:
            return total


async def in_use(context: Context) -> dict[str, dict[str, int]]:
    """Count what still needs each secret key, by its id: a key that is not here may be taken away."""
    counted = {
        "secrets": select(SecretVersion.key_id, func.count()).group_by(SecretVersion.key_id),
        "open runs": select(Run.key_id, func.count()).where(Run.status.in_(OPEN_RUN)).group_by(Run.key_id),
        "pull credentials": select(PullCredential.key_id, func.count()).group_by(PullCredential.key_id),
    }
    found: dict[str, dict[str, int]] = {}
    async with alone(context.sessions) as session:
        for what, statement in counted.items():
            for key_id, count in (await session.execute(statement)).all():
                found.setdefault(key_id, {})[what] = count
    return found
