"""API keys: who may call, and what for."""

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import select

from app import keys
from app.api.deps import Admin, Cursor, Db, Door, Limit, decode_cursor, encode_cursor
from app.api.lists import NextPage
from app.api.once import Once, OnceOnly, OnceRoute
from app.api.reasons import responses
from app.api.schemas import ApiKeyOut, NewApiKey, Page
from app.errors import forbidden
from app.keys import Holder
from app.models import ApiKey, Project
from app.requests import KeyRequest, KeyRotation, ProjectName

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=OnceRoute)

ItsProject = Annotated[ProjectName | None, Query(alias="project", description="For the operator: another project.")]


@router.post("", status_code=201, responses=responses(operators_only=403, project_not_found=404))
async def create_key(body: KeyRequest, caller: Admin, once: OnceOnly, session: Db, response: Response) -> NewApiKey:
    """Make a key. Its text is in this answer and nowhere else, so keep it."""
    project = await _project(session, caller, body.project)
    row, text = await keys.create(session, project, body.name, scopes=body.scopes, expires_at=body.expires_at)
    return _shown(row, text, response, once)


@router.get("", responses=responses(operators_only=403, project_not_found=404))
async def list_keys(
    caller: Admin,
    session: Db,
    next_page: NextPage,
    limit: Limit = 50,
    cursor: Cursor = None,
    project: ItsProject = None,
    *,
    ended: Annotated[bool, Query(description="With those that were revoked or have run out.")] = False,
) -> Page[ApiKeyOut]:
    """List the project's keys, newest first."""
    owner = await _project(session, caller, project)
    statement = select(ApiKey).where(ApiKey.project_id == owner.id)
    if not ended:
        statement = statement.where(*keys.valid())
    if cursor is not None:
        statement = statement.where(ApiKey.id < decode_cursor(cursor, str)[0])
    rows = (await session.execute(statement.order_by(ApiKey.id.desc()).limit(limit + 1))).scalars().all()
    return Page(
        items=[ApiKeyOut.model_validate(row) for row in rows[:limit]],
        next_cursor=next_page(encode_cursor(rows[limit - 1].id) if len(rows) > limit else None),
    )


@router.get("/{key_id}", responses=responses(operators_only=403, project_not_found=404, key_not_found=404))
async def get_key(key_id: str, caller: Admin, session: Db, project: ItsProject = None) -> ApiKeyOut:
    """Look at a key."""
    return ApiKeyOut.model_validate(await keys.find(session, await _project(session, caller, project), key_id))


@router.delete("/{key_id}", responses=responses(operators_only=403, project_not_found=404, key_not_found=404))
async def revoke_key(key_id: str, caller: Admin, session: Db, door: Door, project: ItsProject = None) -> ApiKeyOut:
    """End a key: at once on this process, within two seconds on all. One that has ended already is fine."""
    row = await keys.find(session, await _project(session, caller, project), key_id, lock=True)
    await keys.revoke(session, row)
    door.forget_after(session)
    return ApiKeyOut.model_validate(row)


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    responses=responses(operators_only=403, project_not_found=404, key_not_found=404, key_ended=409),
)
async def rotate_key(
    key_id: str,
    caller: Admin,
    once: OnceOnly,
    session: Db,
    door: Door,
    response: Response,
    body: KeyRotation | None = None,
    project: ItsProject = None,
) -> NewApiKey:
    """Make a key's successor, with the same name and scopes; both are good until the overlap is over."""
    owner = await _project(session, caller, project)
    row = await keys.find(session, owner, key_id, lock=True)
    overlap = timedelta(seconds=(body or KeyRotation()).overlap_seconds)
    fresh, text = await keys.rotate(session, owner, row, overlap)
    door.forget_after(session)
    return _shown(fresh, text, response, once)


async def _project(session: Db, caller: Holder, name: str | None) -> Project:
    """Return the project meant; Refusal (403) for another one than the caller's, unless it is the operator who asks."""
    if name is None or name == caller.project.name:
        return caller.project
    if not caller.operator:
        raise forbidden("Only the operator may manage the keys of another project.", reason="operators_only")
    return await keys.project_named(session, name)


def _shown(row: ApiKey, text: str, response: Response, once: Once | None) -> NewApiKey:
    if once is not None:
        once.hides = ("key",)
    response.headers["Location"] = f"/v1/keys/{row.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewApiKey(**ApiKeyOut.model_validate(row).model_dump(), key=text)
