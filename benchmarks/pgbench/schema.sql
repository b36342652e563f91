-- The least that any control plane of this kind must write; the ceiling that ours is measured against.
create table build(id bigint generated always as identity primary key, tenant int not null, state text not null default 'queued',
  spec jsonb not null, deadline timestamptz, token text, artifact text, version int not null default 0,
  created_at timestamptz not null default now(), updated_at timestamptz not null default now());
create index build_live on build(state, deadline) where state not in ('live', 'failed', 'canceled');
create index build_tenant on build(tenant, created_at);
create table job(id bigint generated always as identity primary key, kind text not null, build_id bigint not null,
  priority int not null default 0, run_at timestamptz not null default now(), locked_by text, locked_until timestamptz,
  attempts int not null default 0);
create index job_ready on job(priority desc, run_at, id) where locked_by is null;
create table event(id bigint generated always as identity primary key, build_id bigint not null, seq int not null,
  kind text not null, data jsonb, at timestamptz not null default now());
create index event_build on event(build_id, id);
-- A few jobs ahead, so that a claim never finds the pool empty (a race makes that legal, and pgbench would abort on it).
with b as (insert into build(tenant, spec, token) select 1, '{}', 't' from generate_series(1, 200) returning id)
insert into job(kind, build_id) select 'dispatch', id from b;
analyze;
