//! What has a receipt survives `kill -9` at any moment.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::support::{noise, outcome, request, wait};
use gateway_daemon::record::{Event, LogFilter, Reader, Recorder, RowContent, StoreSettings};

/// Set for the process that is killed: the store's folder.
const CHILD: &str = "WEIR_TEST_RECORD_CHILD";
const KILLS: u64 = 20;

#[test]
fn what_has_a_receipt_survives_kill_9() {
    if let Ok(dir) = std::env::var(CHILD) {
        record_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..KILLS {
        let killed = run_and_kill(dir.path(), Duration::from_millis(20 + round * 37 % 300));
        assert!(!killed.is_empty(), "round {round}: nothing was acknowledged");
        acknowledged.extend(killed);
        let before = files(dir.path());
        let offline = Reader::offline(dir.path()).unwrap();
        assert_eq!(offline.verify().unwrap(), [], "round {round}");
        assert_kept(&offline, &acknowledged);
        drop(offline);
        assert!(files(dir.path()) == before, "round {round}: reading offline changed the evidence");
    }
    let (recorder, findings) = Recorder::open(StoreSettings::new(dir.path())).unwrap();
    assert_eq!(findings, []);
    let reader = recorder.reader().unwrap();
    assert_eq!(reader.verify().unwrap(), []);
    assert_kept(&reader, &acknowledged);
}

/// Two sessions that record and print what they have receipts for.
fn record_until_killed(dir: &Path) -> ! {
    let mut settings = StoreSettings::new(dir);
    settings.window_bytes = 4 * 1024 * 1024;
    let (recorder, findings) = Recorder::open(settings).unwrap();
    assert_eq!(findings, []);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let id = recorder.next_session();
                let mut log = recorder.session(id);
                for number in 1.. {
                    log.append(&request(id, number, "SELECT 1", true)).unwrap();
                    log.append_answer(number, &noise(number, 20_000)).unwrap();
                    let upto = log.append(&outcome(id, number, number)).unwrap();
                    wait(log.receipt(upto)).unwrap();
                    println!("{id} {number}");
                }
            });
        }
    });
    unreachable!("the sessions never end")
}

/// The acknowledged requests of a process that was killed after `life` of recording.
fn run_and_kill(dir: &Path, life: Duration) -> Vec<(String, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::what_has_a_receipt_survives_kill_9", "--nocapture"])
        .env(CHILD, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut acknowledged = Vec::new();
    let mut killed_at = None;
    for line in &mut lines {
        let Some((session, number)) = line.split_once(' ') else { continue };
        let Ok(number) = number.parse() else { continue };
        acknowledged.push((session.to_owned(), number));
        let since = *killed_at.get_or_insert_with(std::time::Instant::now);
        if since.elapsed() >= life {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    // The last line may be cut by the kill.
    acknowledged.pop();
    acknowledged
}

fn assert_kept(reader: &Reader, acknowledged: &BTreeSet<(String, u64)>) {
    let mut kept = BTreeSet::new();
    for row in reader.log(LogFilter::default()) {
        match row.unwrap().content {
            RowContent::Event(event) => {
                if let Event::Outcome(outcome) = *event {
                    kept.insert((outcome.session.to_string(), outcome.request));
                }
            }
            RowContent::Unreadable(cause) => panic!("{cause}"),
        }
    }
    let lost: Vec<_> = acknowledged.difference(&kept).take(5).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}
