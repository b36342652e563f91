"""Projects: tenants. The operator makes them; everybody can look at their own."""

from fastapi import APIRouter, Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import keys
from app.api.deps import Caller, Ctx, Cursor, Db, Door, KeyHolder, Limit, Operator, decode_cursor, encode_cursor
from app.api.lists import NextPage
from app.api.once import OnceOnly, OnceRoute
from app.api.reasons import responses
from app.api.schemas import Page, ProjectDetail, ProjectLimits, ProjectOut, ProjectUsage
from app.builds import limits
from app.context import Context
from app.errors import not_found
from app.models import Project
from app.requests import ProjectPatch, ProjectRequest

router = APIRouter(prefix="/v1/projects", tags=["projects"], route_class=OnceRoute)


@router.post("", status_code=201, responses=responses(operators_only=403, project_exists=409))
async def create_project(
    body: ProjectRequest, operator: Operator, context: Ctx, once: OnceOnly, session: Db, response: Response
) -> ProjectDetail:
    """Make a project; it needs a key next: `POST /v1/keys` with its name."""
    project = await keys.create_project(session, **body.model_dump())
    response.headers["Location"] = f"/v1/projects/{project.name}"
    return await _detail(context, session, project)


@router.get("", responses=responses())
async def list_projects(
    caller: Caller, holder: KeyHolder, session: Db, next_page: NextPage, limit: Limit = 50, cursor: Cursor = None
) -> Page[ProjectOut]:
    """List projects by name: all of them for the operator, the caller's own for everybody else."""
    statement = select(Project).order_by(Project.name)
    if not holder.operator:
        statement = statement.where(Project.id == caller.id)
    if cursor is not None:
        statement = statement.where(Project.name > decode_cursor(cursor, str)[0])
    rows = (await session.execute(statement.limit(limit + 1))).scalars().all()
    return Page(
        items=[ProjectOut.model_validate(row) for row in rows[:limit]],
        next_cursor=next_page(encode_cursor(rows[limit - 1].name) if len(rows) > limit else None),
    )


@router.get("/{project}", responses=responses(project_not_found=404))
async def get_project(project: str, caller: Caller, holder: KeyHolder, context: Ctx, session: Db) -> ProjectDetail:
    """Look at a project by its name: what it may have, and what it has now."""
    if not holder.operator and project != caller.name:
        raise not_found("project", project)
    return await _detail(context, session, await keys.project_named(session, project))


@router.patch("/{project}", responses=responses(operators_only=403, project_not_found=404))
async def update_project(
    project: str, body: ProjectPatch, operator: Operator, context: Ctx, door: Door, session: Db
) -> ProjectDetail:
    """Change a project's limits; every process goes by the new ones within two seconds. What is there already stays."""
    row = await keys.project_named(session, project)
    for name, value in body.model_dump(exclude_unset=True).items():
        setattr(row, name, value)
    door.forget_after(session)
    return await _detail(context, session, row)


async def _detail(context: Context, session: AsyncSession, project: Project) -> ProjectDetail:
    plain = ProjectOut.model_validate(project).model_dump()
    holds = ProjectLimits.model_validate(limits.limits(context.settings, project))
    return ProjectDetail(**plain, limits=holds, usage=ProjectUsage(**await limits.usage(session, project)))
