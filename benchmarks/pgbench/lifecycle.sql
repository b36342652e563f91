\set tenant random(1, 50)
-- accept
begin;
insert into build(tenant, spec, token) values (:tenant, '{"source": "x", "service": {"name": "a"}}', 'tok') returning id as bid \gset
insert into job(kind, build_id) values ('dispatch', :bid);
insert into event(build_id, seq, kind, data) values (:bid, 1, 'queued', '{}');
select pg_notify('job', '');
commit;
-- claim
begin;
select id as jid, build_id as cid from job where locked_by is null and run_at <= now() order by priority desc, run_at, id limit 1 for update skip locked \gset
update job set locked_by = 'w1', locked_until = now() + interval '60 s', attempts = attempts + 1 where id = :jid;
update build set state = 'dispatching', version = version + 1, updated_at = now() where id = :cid;
insert into event(build_id, seq, kind, data) values (:cid, 2, 'dispatching', '{}');
commit;
-- launched
begin;
update build set state = 'building', deadline = now() + interval '15 min', version = version + 1, updated_at = now() where id = :cid;
delete from job where id = :jid;
insert into event(build_id, seq, kind) values (:cid, 3, 'building');
commit;
-- reported
begin;
update build set state = 'promoting', artifact = 'repository@digest', version = version + 1, updated_at = now() where id = :cid;
insert into job(kind, build_id) values ('promote', :cid);
insert into event(build_id, seq, kind) values (:cid, 4, 'promoting');
select pg_notify('job', '');
commit;
-- claimed again
begin;
select id as jid, build_id as cid from job where locked_by is null and run_at <= now() order by priority desc, run_at, id limit 1 for update skip locked \gset
update job set locked_by = 'w1', locked_until = now() + interval '60 s', attempts = attempts + 1 where id = :jid;
commit;
-- live
begin;
update build set state = 'live', deadline = null, version = version + 1, updated_at = now() where id = :cid;
delete from job where id = :jid;
insert into event(build_id, seq, kind) values (:cid, 5, 'live');
commit;
