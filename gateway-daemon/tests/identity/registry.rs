//! Runs: who they speak for, until when, and what a freeze, an end and a restart leave of that.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use gateway_daemon::identity::{
    CgroupId, Enrolment, Group, Identity, Registry, RegistryError, Run, RunId, Standing, Subject, Uids,
    clock::Clock as _,
};
use tempfile::TempDir;

use crate::provider::TestClock;

const HOUR: Duration = Duration::from_secs(3600);
/// For what must come; nothing waits this long.
const SOON: Duration = Duration::from_secs(20);

struct Bench {
    registry: Arc<Registry>,
    clock: TestClock,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), TestClock::new());
        let registry = Registry::open_with_clock(folder.path(), Arc::new(clock.clone())).expect("opens");
        Self { registry, clock, folder }
    }

    /// As a daemon that starts after this one.
    fn restart(self) -> Self {
        let Self { registry, clock, folder } = self;
        drop(registry);
        let registry = Registry::open_with_clock(folder.path(), Arc::new(clock.clone())).expect("opens");
        Self { registry, clock, folder }
    }

    fn enrol(&self, agent: &str, subject: &str, uid: u32, cgroup: u64) -> Result<Arc<Run>, RegistryError> {
        self.registry.enrol(Enrolment {
            id: self.registry.next_run_id(),
            uids: Uids::One(uid),
            cgroup: CgroupId(cgroup),
            starter: 1000,
            token_file: Some("/home/alice/token".into()),
            identity: self.identity(agent, subject),
        })
    }

    fn identity(&self, agent: &str, subject: &str) -> Identity {
        identity(agent, subject, self.clock.now().wall + HOUR)
    }
}

fn identity(agent: &str, subject: &str, expires: SystemTime) -> Identity {
    Identity {
        agent: agent.into(),
        subject: Subject { issuer: "https://idp.example".into(), subject: subject.into() },
        groups: vec![Group("corp/developers".into())],
        token_id: None,
        actor: None,
        token_sha256: [7; 32],
        expires,
    }
}

fn is_valid(run: &Run) -> bool {
    matches!(run.standing_now(), Standing::Valid(_))
}

#[tokio::test]
async fn a_cgroup_leads_to_its_run_and_no_other() {
    let bench = Bench::new();
    let run = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    assert_eq!(bench.registry.by_cgroup(CgroupId(41)).expect("the run").id, run.id);
    assert!(bench.registry.by_cgroup(CgroupId(42)).is_none());
    let Standing::Valid(identity) = run.standing_now() else { panic!("valid") };
    assert_eq!((&*identity.agent, &*identity.subject.subject), ("claude", "agent-7"));
    let error = bench.enrol("claude", "agent-7", 2000, 41).unwrap_err();
    assert_eq!(error.to_string(), format!("cgroup 41 already belongs to run {}", run.id));
}

#[tokio::test]
async fn one_uid_has_one_subject_at_a_time() {
    let bench = Bench::new();
    let first = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    let error = bench.enrol("codex", "agent-8", 2000, 42).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "uid 2000 already runs `claude` (run {}) for another subject; end that run first, or give this agent a uid \
             of its own",
            first.id
        )
    );
    bench.enrol("claude", "agent-7", 2000, 43).expect("the same subject");
    bench.enrol("codex", "agent-8", 2001, 44).expect("another uid");
    // An expired run's processes still live.
    bench.clock.advance(2 * HOUR);
    assert!(matches!(bench.enrol("codex", "agent-8", 2000, 45), Err(RegistryError::UidTaken { .. })));
    let runs = bench.registry.list();
    for run in &runs {
        bench.registry.end(run.id).expect("ended");
    }
    assert!(bench.registry.list().is_empty());
    // A process that outlives its run has the uid still.
    assert!(matches!(bench.enrol("codex", "agent-8", 2000, 45), Err(RegistryError::UidTaken { .. })));
    let bench = bench.restart();
    assert!(matches!(bench.enrol("codex", "agent-8", 2000, 45), Err(RegistryError::UidTaken { .. })));
    assert!(bench.registry.by_cgroup(CgroupId(41)).is_none(), "a restart does not bring an ended run back");
    for run in bench.registry.ended() {
        assert_eq!(run.standing_now(), Standing::Ended);
        bench.registry.release(run.id).expect("released");
    }
    assert!(matches!(bench.registry.release(runs[0].id), Err(RegistryError::NoRun { .. })));
    bench.enrol("codex", "agent-8", 2000, 46).expect("the uid is free");
}

#[tokio::test]
async fn the_same_subject_of_another_issuer_is_another_subject() {
    let bench = Bench::new();
    bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    let mut identity = bench.identity("claude", "agent-7");
    identity.subject.issuer = "https://other.example".into();
    let id = bench.registry.next_run_id();
    let enrolment =
        Enrolment { id, uids: Uids::One(2000), cgroup: CgroupId(42), starter: 0, token_file: None, identity };
    assert!(matches!(bench.registry.enrol(enrolment), Err(RegistryError::UidTaken { .. })));
}

#[tokio::test]
async fn root_and_ended_identities_are_not_enrolled() {
    let bench = Bench::new();
    assert!(matches!(bench.enrol("claude", "agent-7", 0, 41), Err(RegistryError::Root { .. })));
    let mut identity = bench.identity("claude", "agent-7");
    identity.expires = bench.clock.now().wall;
    let id = bench.registry.next_run_id();
    let enrolment =
        Enrolment { id, uids: Uids::One(2000), cgroup: CgroupId(41), starter: 0, token_file: None, identity };
    assert!(matches!(bench.registry.enrol(enrolment), Err(RegistryError::Expired)));
    assert!(bench.registry.list().is_empty());
}

#[tokio::test]
async fn an_identity_ends_when_its_token_says_though_clocks_are_set() {
    let second = Duration::from_secs(1);
    let bench = Bench::new();
    let run = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    bench.clock.advance(HOUR - second);
    assert!(is_valid(&run));
    bench.clock.advance(second);
    assert!(matches!(run.standing_now(), Standing::Expired { .. }));

    let set_back = bench.enrol("codex", "agent-8", 2001, 42).expect("enrolled");
    bench.clock.set_back(HOUR / 2);
    bench.clock.advance(HOUR);
    assert!(!is_valid(&set_back), "a wall clock set back makes no life longer");

    let set_forward = bench.enrol("aider", "agent-9", 2002, 43).expect("enrolled");
    bench.clock.set_forward(HOUR);
    assert!(!is_valid(&set_forward), "by the wall clock it has ended");
}

#[tokio::test]
async fn who_listens_is_told_of_an_expiry_at_its_moment() {
    let folder = tempfile::tempdir().expect("a folder");
    let registry = Registry::open(folder.path()).expect("opens");
    let expires = SystemTime::now() + Duration::from_millis(400);
    let id = registry.next_run_id();
    let run = registry
        .enrol(Enrolment {
            id,
            uids: Uids::One(2000),
            cgroup: CgroupId(41),
            starter: 0,
            token_file: None,
            identity: identity("claude", "agent-7", expires),
        })
        .expect("enrolled");
    let mut listener = run.subscribe();
    assert!(is_valid(&run));
    let wait = listener.wait_for(|standing| matches!(standing, Standing::Expired { .. }));
    let _ = tokio::time::timeout(SOON, wait).await.expect("told").expect("the run lives");
    let late = SystemTime::now().duration_since(expires).expect("not before its time");
    assert!(late < Duration::from_millis(500), "{late:?} late");
    assert_eq!(run.standing_now(), Standing::Expired { at: expires });
}

#[tokio::test]
async fn a_timer_notices_a_machine_that_slept() {
    let bench = Bench::new();
    let run = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    let mut listener = run.subscribe();
    bench.clock.advance(2 * HOUR);
    let wait = listener.wait_for(|standing| matches!(standing, Standing::Expired { .. }));
    let _ = tokio::time::timeout(SOON, wait).await.expect("told").expect("the run lives");
}

#[tokio::test]
async fn a_new_token_of_the_same_subject_renews_and_no_other_does() {
    let bench = Bench::new();
    let run = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    bench.clock.advance(2 * HOUR);
    assert!(!is_valid(&run));
    let (registry, other) = (&bench.registry, |agent, subject| bench.identity(agent, subject));
    assert!(matches!(registry.refresh(run.id, other("claude", "agent-8")), Err(RegistryError::OtherSubject { .. })));
    assert!(matches!(registry.refresh(run.id, other("codex", "agent-7")), Err(RegistryError::OtherSubject { .. })));
    assert!(matches!(registry.refresh_agent(&other("claude", "x")), Err(RegistryError::NoRunForSubject { .. })));
    let ended = identity("claude", "agent-7", bench.clock.now().wall);
    assert!(matches!(registry.refresh(run.id, ended), Err(RegistryError::Expired)));
    assert!(!is_valid(&run));
    registry.refresh(run.id, other("claude", "agent-7")).expect("refreshed");
    assert!(is_valid(&run));
    assert_eq!(registry.refresh_agent(&other("claude", "agent-7")).expect("refreshed"), [run.id]);
    registry.end(run.id).expect("ended");
    assert!(matches!(registry.refresh(run.id, other("claude", "agent-7")), Err(RegistryError::NoRun { .. })));
}

#[tokio::test]
async fn a_freeze_holds_at_once_for_all_runs_and_is_not_melted_by_a_token() {
    let bench = Bench::new();
    let runs = [41, 42].map(|cgroup| bench.enrol("claude", "agent-7", 2000, cgroup).expect("enrolled"));
    let other = bench.enrol("codex", "agent-8", 2001, 43).expect("enrolled");
    let mut listener = runs[1].subscribe();
    listener.mark_unchanged();
    bench.registry.freeze("claude", "root").expect("frozen");
    assert!(listener.has_changed().expect("the run lives"));
    for run in &runs {
        assert_eq!(run.standing_now().to_string(), "the agent was frozen by root");
    }
    assert!(is_valid(&other));
    let error = bench.enrol("claude", "agent-7", 2000, 44).unwrap_err();
    assert_eq!(error.to_string(), "agent `claude` was frozen by root; `weir agent thaw claude` ends that");
    bench.registry.refresh(runs[0].id, bench.identity("claude", "agent-7")).expect("refreshed");
    assert!(matches!(runs[0].standing_now(), Standing::Frozen(_)));
    bench.registry.freeze("claude", "uid 1000").expect("frozen already");
    assert_eq!(&*bench.registry.frozen()[0].1.by, "root", "the first freeze is the one told");

    bench.clock.advance(HOUR / 2);
    bench.registry.thaw("claude").expect("thawed");
    assert!(runs.iter().all(|run| is_valid(run)));
    assert!(matches!(bench.registry.thaw("claude"), Err(RegistryError::NotFrozen { .. })));
    bench.registry.freeze("claude", "root").expect("frozen");
    bench.clock.advance(HOUR);
    bench.registry.thaw("claude").expect("thawed");
    assert!(!runs.iter().any(|run| is_valid(run)), "a token ends under a freeze as well");
}

#[tokio::test]
async fn an_ended_run_is_over_for_those_who_hold_it() {
    let bench = Bench::new();
    let run = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    let mut listener = run.subscribe();
    bench.registry.freeze("claude", "root").expect("frozen");
    bench.registry.end(run.id).expect("ended");
    assert_eq!(run.standing_now(), Standing::Ended);
    assert_eq!(*listener.borrow_and_update(), Standing::Ended);
    assert!(bench.registry.by_cgroup(CgroupId(41)).is_none());
    assert!(matches!(bench.registry.end(run.id), Err(RegistryError::NoRun { .. })));
    bench.registry.thaw("claude").expect("thawed");
    assert_eq!(run.standing_now(), Standing::Ended);
}

#[tokio::test]
async fn a_restart_keeps_the_run_the_uid_and_the_freeze_but_no_identity() {
    let bench = Bench::new();
    let run = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled").id;
    let gone = bench.enrol("codex", "agent-8", 2001, 42).expect("enrolled").id;
    bench.registry.end(gone).expect("ended");
    bench.registry.freeze("aider", "root").expect("frozen");

    let bench = bench.restart();
    let adopted = bench.registry.by_cgroup(CgroupId(41)).expect("the run");
    assert_eq!((adopted.id, &*adopted.agent, adopted.uid, adopted.starter), (run, "claude", 2000, 1000));
    assert_eq!(adopted.token_file.as_deref(), Some("/home/alice/token".as_ref()));
    assert_eq!(adopted.standing_now(), Standing::Unidentified);
    assert!(bench.registry.run(gone).is_none());
    assert!(matches!(bench.enrol("codex", "agent-8", 2000, 43), Err(RegistryError::UidTaken { .. })));
    assert!(matches!(bench.enrol("aider", "agent-9", 2002, 44), Err(RegistryError::Frozen { .. })));
    let other = bench.registry.refresh(run, bench.identity("claude", "agent-8"));
    assert!(matches!(other, Err(RegistryError::OtherSubject { .. })));
    bench.registry.refresh(run, bench.identity("claude", "agent-7")).expect("refreshed");
    assert!(is_valid(&adopted));
    assert!(bench.registry.next_run_id() > run);
    bench.registry.freeze("claude", "root").expect("frozen");

    let bench = bench.restart();
    assert!(matches!(bench.registry.list()[0].standing_now(), Standing::Frozen(_)));
    bench.registry.thaw("claude").expect("thawed");
    assert_eq!(bench.registry.list()[0].standing_now(), Standing::Unidentified, "thawing identifies nobody");
}

#[tokio::test]
async fn a_boot_ends_all_runs_and_no_freeze() {
    let bench = Bench::new();
    bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    bench.registry.freeze("codex", "root").expect("frozen");
    let file = bench.folder.path().join("agents.json");
    let text = std::fs::read_to_string(&file).expect("the file");
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot id");
    assert!(text.contains(boot_id.trim()));
    std::fs::write(&file, text.replace(boot_id.trim(), "another-boot")).expect("written");
    let bench = bench.restart();
    assert!(bench.registry.list().is_empty());
    assert_eq!(&*bench.registry.frozen()[0].0, "codex");
}

#[tokio::test]
async fn what_is_kept_holds_no_token_and_nobody_else_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let bench = Bench::new();
    bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    let file = bench.folder.path().join("agents.json");
    assert_eq!(std::fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).expect("the file");
    assert!(!text.contains("developers") && !text.contains("expires"), "{text}");
}

#[tokio::test]
async fn a_damaged_file_keeps_the_daemon_from_starting() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("agents.json");
    for text in
        ["", "{", r#"{"version":2,"boot_id":"x","frozen":[],"runs":[]}"#, r#"{"version":1,"boot_id":"x","frozen":[]}"#]
    {
        std::fs::write(&file, text).expect("written");
        let error = Registry::open(folder.path()).err().expect("refused").to_string();
        assert!(error.contains("who was frozen is not known"), "{text}: {error}");
    }
}

#[tokio::test]
async fn what_cannot_be_written_down_is_refused_but_a_freeze_holds() {
    let bench = Bench::new();
    let run = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    // Root passes every permission, but no file takes a folder's place.
    std::fs::remove_file(bench.folder.path().join("agents.json")).expect("removed");
    std::fs::create_dir(bench.folder.path().join("agents.json")).expect("a folder in its place");
    assert!(matches!(bench.enrol("codex", "agent-8", 2001, 42), Err(RegistryError::State(_))));
    assert!(bench.registry.by_cgroup(CgroupId(42)).is_none());
    assert!(matches!(bench.registry.freeze("claude", "root"), Err(RegistryError::State(_))));
    assert!(matches!(run.standing_now(), Standing::Frozen(_)));
    assert!(matches!(bench.registry.thaw("claude"), Err(RegistryError::State(_))));
    assert!(matches!(run.standing_now(), Standing::Frozen(_)));
}

#[tokio::test]
async fn run_ids_are_in_order_and_read_back() {
    let bench = Bench::new();
    let ids: Vec<RunId> = (0..100).map(|_| bench.registry.next_run_id()).collect();
    assert!(ids.is_sorted_by(|a, b| a < b && a.to_string() < b.to_string()));
    assert_eq!(ids[0].to_string().parse(), Ok(ids[0]));
    for text in ["", "1", "+00000000000000f", "00065D0000000000", "00065d00000000000", "../../../../etc"] {
        assert!(text.parse::<RunId>().is_err(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_is_never_lost_among_refreshes() {
    let bench = Bench::new();
    let run = bench.enrol("claude", "agent-7", 2000, 41).expect("enrolled");
    for round in 0..50 {
        let (registry, id, identity) = (Arc::clone(&bench.registry), run.id, bench.identity("claude", "agent-7"));
        let refreshing = tokio::spawn(async move {
            for _ in 0..20 {
                registry.refresh(id, identity.clone()).expect("refreshed");
            }
        });
        bench.registry.freeze("claude", "root").expect("frozen");
        refreshing.await.expect("no panic");
        assert!(matches!(run.standing_now(), Standing::Frozen(_)), "round {round}");
        assert!(matches!(*run.subscribe().borrow(), Standing::Frozen(_)), "round {round}");
        bench.registry.thaw("claude").expect("thawed");
    }
}

/// Enrols a run with a uid of a pool of three.
fn pooled(bench: &Bench, cgroup: u64, busy: &[u32]) -> Result<Arc<Run>, RegistryError> {
    bench.registry.enrol(Enrolment {
        id: bench.registry.next_run_id(),
        uids: Uids::Pool { range: 3000..=3002, busy: busy.iter().copied().collect() },
        cgroup: CgroupId(cgroup),
        starter: 0,
        token_file: None,
        identity: bench.identity("claude", "agent-7"),
    })
}

#[tokio::test]
async fn a_pool_s_uids_are_given_in_turn_and_once_at_a_time() {
    let bench = Bench::new();
    let first = pooled(&bench, 1, &[]).expect("enrolled");
    let second = pooled(&bench, 2, &[]).expect("enrolled");
    assert_eq!((first.uid, second.uid), (3000, 3001));
    // Free again, and yet not the next.
    bench.registry.end(first.id).expect("ended");
    bench.registry.release(first.id).expect("released");
    let third = pooled(&bench, 3, &[]).expect("enrolled");
    assert_eq!(third.uid, 3002);
    assert_eq!(pooled(&bench, 4, &[]).expect("enrolled").uid, 3000);
    // One that has ended keeps its uid until its last process is gone.
    bench.registry.end(second.id).expect("ended");
    let full = pooled(&bench, 5, &[]).expect_err("a pool of three");
    assert!(
        full.to_string().contains("all 3 uids of agent `claude`'s `uid_pool` are taken (3 by its runs, 0"),
        "{full}"
    );
    bench.registry.release(second.id).expect("released");
    let full = pooled(&bench, 5, &[3001]).expect_err("a process has it");
    assert!(full.to_string().contains("(2 by its runs, 1 by processes"), "{full}");
    assert_eq!(pooled(&bench, 5, &[]).expect("enrolled").uid, 3001);
}

#[tokio::test]
async fn a_pool_goes_on_where_it_was_under_the_next_daemon() {
    let bench = Bench::new();
    let first = pooled(&bench, 1, &[]).expect("enrolled");
    let second = pooled(&bench, 2, &[]).expect("enrolled");
    for run in [&first, &second] {
        bench.registry.end(run.id).expect("ended");
    }
    bench.registry.release(second.id).expect("released");
    let bench = bench.restart();
    assert_eq!(pooled(&bench, 3, &[]).expect("enrolled").uid, 3002);
    assert_eq!(pooled(&bench, 4, &[]).expect("enrolled").uid, 3001, "the first's processes may live");
    assert!(pooled(&bench, 5, &[]).is_err());
}
