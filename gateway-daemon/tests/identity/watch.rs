//! Token files: whose they must be, and what becomes of a renewed one.

use std::{
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gateway_daemon::identity::{
    CgroupId, Enrolment, Issuer, Registry, Run, Standing, Uids,
    clock::Clock as _,
    watch::{NamedBy, News, TokenFile, Watch},
};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::{
    keys::P256,
    provider::{Provider, TestClock},
};

const ALICE: u32 = 61_001;
const MALLORY: u32 = 61_002;
const SOON: Duration = Duration::from_secs(20);

fn file_of(folder: &Path, name: &str, owner: u32, mode: u32, text: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
    chown(&path, Some(owner), None).expect("these tests run as root");
    path
}

fn read(path: &Path, named_by: NamedBy) -> Result<String, String> {
    let file = TokenFile { path: path.to_owned(), named_by, starter: ALICE };
    match file.read() {
        Ok(token) => Ok(token.expose_secret().to_owned()),
        Err(error) => Err(error.to_string().replace(&path.display().to_string(), "FILE")),
    }
}

#[test]
fn a_token_file_belongs_to_who_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let alice = file_of(folder.path(), "alice", ALICE, 0o600, b"a.b.c\n");
    let root = file_of(folder.path(), "root", 0, 0o600, b"a.b.c");
    let mallory = file_of(folder.path(), "mallory", MALLORY, 0o644, b"a.b.c");
    for named_by in [NamedBy::Starter, NamedBy::Configuration] {
        assert_eq!(read(&alice, named_by).as_deref(), Ok("a.b.c"));
    }
    assert_eq!(read(&root, NamedBy::Configuration).as_deref(), Ok("a.b.c"));
    assert_eq!(
        read(&root, NamedBy::Starter).unwrap_err(),
        "token file `FILE` belongs to uid 0; it must belong to uid 61001, who names it (a file of root's is named in \
         the configuration, as `token_file`)"
    );
    assert_eq!(
        read(&mallory, NamedBy::Starter).unwrap_err(),
        "token file `FILE` belongs to uid 61002; it must belong to uid 61001, who names it (a file of root's is named \
         in the configuration, as `token_file`)"
    );
    assert_eq!(
        read(&mallory, NamedBy::Configuration).unwrap_err(),
        "token file `FILE` belongs to uid 61002; it must belong to root or to uid 61001, who starts the run"
    );
}

#[test]
fn a_token_file_is_a_plain_file_that_nobody_else_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let fault = |path: &Path| read(path, NamedBy::Starter).unwrap_err();
    let good = file_of(folder.path(), "good", ALICE, 0o644, b"a.b.c\r\n");
    assert_eq!(read(&good, NamedBy::Starter).as_deref(), Ok("a.b.c"));

    let link = folder.path().join("link");
    symlink(&good, &link).expect("a link");
    assert_eq!(fault(&link), "token file `FILE` is a symbolic link; name the file itself");
    assert_eq!(fault(folder.path()), "token file `FILE` is not a regular file");
    assert_eq!(fault(Path::new("/dev/zero")), "token file `FILE` is not a regular file");
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    assert_eq!(fault(&pipe), "token file `FILE` is not a regular file");
    assert_eq!(fault(&folder.path().join("none")), "token file `FILE`: No such file or directory (os error 2)");
    for mode in [0o620, 0o602, 0o666] {
        let path = file_of(folder.path(), "writable", ALICE, mode, b"a.b.c");
        let expected =
            format!("token file `FILE` can be written by its group or by others (mode {mode:04o}); `chmod go-w` it");
        assert_eq!(fault(&path), expected);
    }
    let long = file_of(folder.path(), "long", ALICE, 0o600, &vec![b'a'; 1 << 20]);
    assert_eq!(fault(&long), "token file `FILE` is longer than 16384 bytes");
    let full = file_of(folder.path(), "full", ALICE, 0o600, &[&[b'a'; 16_384][..], b"\r\n"].concat());
    assert_eq!(read(&full, NamedBy::Starter).map(|token| token.len()), Ok(16_384));
    let binary = file_of(folder.path(), "binary", ALICE, 0o600, b"\xff\xfe");
    assert_eq!(fault(&binary), "token file `FILE` is not text");
    // One line end belongs to the file, all else to the token, whose own rules refuse it.
    let spaced = file_of(folder.path(), "spaced", ALICE, 0o600, b"a.b.c \n\n");
    assert_eq!(read(&spaced, NamedBy::Starter).as_deref(), Ok("a.b.c \n"));
}

/// A run whose token file is watched.
struct Bench {
    provider: Provider,
    clock: TestClock,
    registry: Arc<Registry>,
    run: Arc<Run>,
    issuer: Arc<Issuer>,
    file: TokenFile,
    news: mpsc::Receiver<News>,
    sender: mpsc::Sender<News>,
    folder: TempDir,
}

impl Bench {
    /// Enrolled with the token that the file has, for an hour.
    async fn new() -> Self {
        let (folder, clock) = (tempfile::tempdir().expect("a folder"), TestClock::new());
        let provider = Provider::with(&[&P256]).await;
        let issuer = Arc::new(Issuer::new(provider.settings()).expect("settings"));
        let registry = Registry::open_with_clock(folder.path(), Arc::new(clock.clone())).expect("opens");
        let path = folder.path().join("token");
        let file = TokenFile { path, named_by: NamedBy::Configuration, starter: ALICE };
        write(&file, &P256.token("ES256", &provider.claims(clock.now())));
        let token = file.read().expect("a token");
        let verified = issuer.verify(&token, clock.now()).await.expect("good");
        let run = registry
            .enrol(Enrolment {
                id: registry.next_run_id(),
                uids: Uids::One(2000),
                cgroup: CgroupId(41),
                starter: ALICE,
                token_file: Some(file.path.clone()),
                identity: verified.into_identity("claude".into(), None).expect("any subject"),
            })
            .expect("enrolled");
        let (sender, news) = mpsc::channel(16);
        Self { provider, clock, registry, run, issuer, file, news, sender, folder }
    }

    fn watch(&self) -> tokio::task::JoinHandle<()> {
        let watch = Watch {
            run: Arc::clone(&self.run),
            file: self.file.clone(),
            issuer: Arc::clone(&self.issuer),
            registry: Arc::clone(&self.registry),
            interval: Duration::from_millis(20),
            news: self.sender.clone(),
        };
        tokio::spawn(watch.until_the_end())
    }

    /// A token of now, with one claim changed.
    fn token(&self, name: &str, value: Value) -> String {
        let mut claims = self.provider.claims(self.clock.now());
        claims[name] = value;
        P256.token("ES256", &claims)
    }

    async fn next(&mut self) -> News {
        tokio::time::timeout(SOON, self.news.recv()).await.expect("news").expect("the watch lives")
    }

    fn is_valid(&self) -> bool {
        matches!(self.run.standing_now(), Standing::Valid(_))
    }
}

/// As a renewing tool does: the whole file, then the name.
fn write(file: &TokenFile, token: &str) {
    let new = file.path.with_extension("new");
    std::fs::write(&new, token).expect("written");
    std::fs::rename(&new, &file.path).expect("renamed");
}

#[tokio::test]
async fn a_renewed_file_renews_its_run_and_a_bad_one_changes_nothing() {
    let mut bench = Bench::new().await;
    let watch = bench.watch();
    bench.clock.advance(Duration::from_secs(1800));

    write(&bench.file, &bench.token("aud", json!("another")));
    let News::Refused { error, .. } = bench.next().await else { panic!("refused") };
    assert_eq!(error.to_string(), "the token's `aud` does not name `weir`");
    assert!(bench.is_valid());

    write(&bench.file, &bench.token("sub", json!("agent-8")));
    let News::NotApplied { error, .. } = bench.next().await else { panic!("not applied") };
    assert!(error.to_string().ends_with("speaks for another subject than the token"), "{error}");
    assert!(bench.is_valid());

    std::fs::remove_file(&bench.file.path).expect("removed");
    let News::Unreadable { error, .. } = bench.next().await else { panic!("unreadable") };
    assert!(error.to_string().contains("No such file"), "{error}");
    assert!(bench.is_valid());

    write(&bench.file, &bench.token("groups", json!(["operators"])));
    let News::Renewed { run, .. } = bench.next().await else { panic!("renewed") };
    assert_eq!(run, bench.run.id);
    bench.clock.advance(Duration::from_secs(3000));
    let Standing::Valid(identity) = bench.run.standing_now() else { panic!("longer than the first token") };
    assert_eq!(&*identity.groups[0].0, "corp/operators");

    bench.registry.end(bench.run.id).expect("ended");
    tokio::time::timeout(SOON, watch).await.expect("the watch ends with its run").expect("no panic");
}

#[tokio::test]
async fn an_expired_run_comes_back_with_a_new_token() {
    let mut bench = Bench::new().await;
    let _watch = bench.watch();
    bench.clock.advance(Duration::from_secs(3600));
    assert!(!bench.is_valid());
    write(&bench.file, &bench.token("jti", json!("new")));
    assert!(matches!(bench.next().await, News::Renewed { .. }));
    assert!(bench.is_valid());
}

#[tokio::test]
async fn one_fault_is_told_once_and_what_holds_later_is_taken_later() {
    let mut bench = Bench::new().await;
    let _watch = bench.watch();
    let later = bench.clock.now().wall + Duration::from_secs(300);
    let later = later.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    write(&bench.file, &bench.token("nbf", json!(later)));
    let News::Refused { error, .. } = bench.next().await else { panic!("refused") };
    assert!(error.to_string().contains("`nbf`"), "{error}");
    // Many looks later there is still nothing new to tell.
    assert!(tokio::time::timeout(Duration::from_millis(300), bench.news.recv()).await.is_err());
    bench.clock.advance(Duration::from_secs(300));
    assert!(matches!(bench.next().await, News::Renewed { .. }));
}

#[tokio::test]
async fn after_a_restart_the_file_identifies_the_run_again() {
    let mut bench = Bench::new().await;
    bench.registry = Registry::open_with_clock(bench.folder.path(), Arc::new(bench.clock.clone())).expect("opens");
    bench.run = bench.registry.by_cgroup(CgroupId(41)).expect("adopted");
    assert_eq!(bench.run.standing_now(), Standing::Unidentified);
    let _watch = bench.watch();
    assert!(matches!(bench.next().await, News::Renewed { .. }));
    assert!(bench.is_valid());
}

#[tokio::test]
async fn news_never_shows_a_token() {
    let mut bench = Bench::new().await;
    let _watch = bench.watch();
    let token = bench.token("sub", json!("agent-8"));
    write(&bench.file, &token);
    let shown = format!("{:?} {:?} {:?}", bench.next().await, bench.file, bench.run);
    assert!(token.split('.').all(|part| !shown.contains(part)), "{shown}");
}
