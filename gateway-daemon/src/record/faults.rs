//! The store on a disk that fails on command.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use redb::{StorageBackend, backends::FileBackend};

use super::{
    Event, LogFilter, Recorder, Row, RowContent, StoreError, StoreSettings, Time,
    settings::{Backend, World, open_file},
};

const ERROR: u8 = 0;
const PANIC: u8 = 1;
const BROKEN_CLOCK: u64 = u64::MAX;

/// Fails every write and sync from the moment `left` is used up until it is given more.
#[derive(Debug, Default)]
struct Dying {
    left: AtomicI64,
    how: AtomicU8,
    now: AtomicU64,
}

#[derive(Debug)]
struct DyingWorld(Arc<Dying>);

#[derive(Debug)]
struct DyingDisk(Arc<Dying>, FileBackend);

impl Dying {
    fn step(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        match self.how.load(Ordering::SeqCst) {
            PANIC => panic!("the disk's code panics"),
            _ => Err(io::Error::other("the disk died")),
        }
    }
}

impl World for DyingWorld {
    fn now(&self) -> Time {
        let now = self.0.now.load(Ordering::SeqCst);
        assert!(now != BROKEN_CLOCK, "the clock's code panics");
        Time(now)
    }

    fn open(&self, path: &Path, create: bool) -> Result<Backend, redb::Error> {
        Ok(Backend(Box::new(DyingDisk(self.0.clone(), open_file(path, create)?))))
    }
}

impl StorageBackend for DyingDisk {
    fn len(&self) -> io::Result<u64> {
        self.1.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.1.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.step()?;
        self.1.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.step()?;
        self.1.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.step()?;
        self.1.write(offset, data)
    }
}

fn store(dir: &Path) -> (StoreSettings, Arc<Dying>) {
    let dying = Arc::new(Dying::default());
    dying.left.store(i64::MAX, Ordering::SeqCst);
    dying.now.store(1_000_000_000_000_000, Ordering::SeqCst);
    let mut settings = StoreSettings::new(dir);
    settings.world = Arc::new(DyingWorld(dying.clone()));
    (settings, dying)
}

fn admin(number: u64) -> Event {
    Event::Admin(super::AdminEvent { uid: None, what: "test".into(), detail: number.to_string() })
}

fn wait<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.unwrap() })
}

fn rows(recorder: &Recorder) -> Vec<Row> {
    recorder.reader().unwrap().log(LogFilter::default()).map(Result::unwrap).collect()
}

fn numbers(rows: &[Row]) -> Vec<u64> {
    let number = |row: &Row| match &row.content {
        RowContent::Event(event) => match &**event {
            Event::Admin(admin) => admin.detail.parse().ok(),
            _ => None,
        },
        RowContent::Unreadable(cause) => panic!("{cause}"),
    };
    rows.iter().filter_map(number).collect()
}

/// Dies after every possible number of steps of a few commits; says what is refused, and that all of it is there at last.
fn dies_at_every_step(how: u8) {
    for steps in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let (settings, dying) = store(dir.path());
        let (recorder, _) = Recorder::open(settings).unwrap();
        dying.how.store(how, Ordering::SeqCst);
        dying.left.store(steps, Ordering::SeqCst);
        let mut refused = 0;
        for number in 0..8 {
            if let Err(error) = wait(recorder.record(&admin(number)).unwrap()) {
                assert!(matches!(error, StoreError::Io { .. } | StoreError::Damaged { .. }), "{error}");
                assert!(error.to_string().contains(".redb"), "says where: {error}");
                refused += 1;
            }
        }
        let mut session = recorder.session(recorder.next_session());
        assert_eq!(session.append(&admin(99)).is_err(), refused > 0, "{steps} steps");
        dying.left.store(i64::MAX, Ordering::SeqCst);
        wait(async {
            while recorder.trouble().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        wait(recorder.record(&admin(8)).unwrap()).unwrap();
        assert_eq!(recorder.reader().unwrap().verify().unwrap(), [], "{steps} steps");
        let rows = rows(&recorder);
        assert_eq!(numbers(&rows), (0..9).collect::<Vec<_>>(), "{steps} steps: each once, in order");
        assert_eq!(
            rows.iter().map(|row| row.seq).collect::<Vec<_>>(),
            (1..=9 + u64::from(refused > 0)).collect::<Vec<_>>()
        );
    }
}

#[test]
fn a_disk_that_dies_refuses_and_loses_and_doubles_nothing() {
    dies_at_every_step(ERROR);
}

#[test]
fn a_panic_while_writing_refuses_and_loses_and_doubles_nothing() {
    dies_at_every_step(PANIC);
}

#[test]
fn a_window_ends_with_its_day_and_time_never_goes_back() {
    const DAY: u64 = 24 * 60 * 60 * 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let (settings, world) = store(dir.path());
    let (recorder, _) = Recorder::open(settings.clone()).unwrap();
    let start = world.now.load(Ordering::SeqCst);
    let set = |time: u64| world.now.store(time, Ordering::SeqCst);
    for (number, time) in [(0, start), (1, start + DAY), (2, start + DAY - 5), (3, start + 2 * DAY), (4, 5)] {
        set(time);
        wait(recorder.record(&admin(number)).unwrap()).unwrap();
    }
    let windows = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(windows, 3);
    let times: Vec<u64> = rows(&recorder).iter().map(|row| row.time.0).collect();
    assert_eq!(times, [start, start + DAY, start + DAY, start + 2 * DAY, start + 2 * DAY]);
    drop(recorder);
    set(7);
    let (recorder, findings) = Recorder::open(settings).unwrap();
    assert_eq!(findings, []);
    wait(recorder.record(&admin(5)).unwrap()).unwrap();
    let rows = rows(&recorder);
    assert_eq!(rows.last().unwrap().time.0, start + 2 * DAY);
    assert_eq!(numbers(&rows), [0, 1, 2, 3, 4, 5]);
    assert_eq!(recorder.reader().unwrap().verify().unwrap(), []);
}

#[test]
fn a_window_that_dies_while_it_is_made_is_made_again() {
    const DAY: u64 = 24 * 60 * 60 * 1_000_000;
    for steps in 0..25 {
        let dir = tempfile::tempdir().unwrap();
        let (settings, world) = store(dir.path());
        let (recorder, _) = Recorder::open(settings).unwrap();
        wait(recorder.record(&admin(0)).unwrap()).unwrap();
        world.now.fetch_add(DAY, Ordering::SeqCst);
        world.left.store(steps, Ordering::SeqCst);
        let _ = wait(recorder.record(&admin(1)).unwrap());
        world.left.store(i64::MAX, Ordering::SeqCst);
        wait(async {
            while recorder.trouble().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        wait(recorder.record(&admin(2)).unwrap()).unwrap();
        assert_eq!(numbers(&rows(&recorder)), [0, 1, 2], "{steps} steps");
        assert_eq!(recorder.reader().unwrap().verify().unwrap(), [], "{steps} steps");
    }
}

#[test]
fn a_writer_that_dies_leaves_nobody_waiting_and_the_store_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let (settings, world) = store(dir.path());
    let (recorder, _) = Recorder::open(settings.clone()).unwrap();
    wait(recorder.record(&admin(0)).unwrap()).unwrap();
    let now = world.now.swap(BROKEN_CLOCK, Ordering::SeqCst);
    let mut session = recorder.session(recorder.next_session());
    session.append(&admin(1)).unwrap();
    assert_eq!(wait(session.receipt(1)).unwrap_err(), StoreError::Closed);
    assert_eq!(session.append(&admin(2)).unwrap_err(), StoreError::Closed);
    drop((session, recorder));
    world.now.store(now, Ordering::SeqCst);
    let (recorder, findings) = Recorder::open(settings).unwrap();
    assert_eq!(findings, []);
    wait(recorder.record(&admin(3)).unwrap()).unwrap();
    assert_eq!(numbers(&rows(&recorder)), [0, 3]);
}
