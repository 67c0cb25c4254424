//! A full disk: everyone is refused and told why; when space is back the store goes on by itself.

use std::{fs, path::Path, time::Duration};

use super::support::{noise, request, session_end, start, wait};
use gateway_daemon::record::{Event, LogFilter, Receipt, Recorder, RowContent, SessionLog, StoreError, StoreSettings};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A file system of 8 MiB, gone with the value.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount("weir-test", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=8m")).expect("root mounts a tmpfs");
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

fn record_one(log: &mut SessionLog, number: u64) -> Result<Receipt, StoreError> {
    log.append(&request(log.id(), number, "SELECT 1", true))?;
    log.append_answer(number, &noise(number, 30_000))?;
    let upto = log.appended();
    wait(log.receipt(upto))
}

#[test]
fn a_full_disk_refuses_everyone_and_recovers_by_itself() {
    let disk = Small::new();
    let (recorder, _) = Recorder::open(StoreSettings::new(disk.path().join("record"))).unwrap();
    let (first, second) = (recorder.next_session(), recorder.next_session());
    let (mut log, mut bystander) = (recorder.session(first), recorder.session(second));
    log.append(&Event::SessionStart(start(first, "claude"))).unwrap();
    let mut receipts = 0;
    let error = loop {
        match record_one(&mut log, receipts + 1) {
            Ok(receipt) => receipts = receipt.upto() / 2,
            Err(error) => break error,
        }
    };
    assert!(receipts > 10, "{receipts}");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert!(error.to_string().starts_with("the record has no space left in"), "{error}");
    assert_eq!(recorder.trouble().map(|error| matches!(error, StoreError::Full { .. })), Some(true));
    let refused = bystander.append(&request(second, 1, "SELECT 1", true)).unwrap_err();
    assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
    log.append(&session_end(first)).expect("a session may say how it ended");
    log.commit();

    remount_bigger(disk.path());
    wait(async {
        while recorder.trouble().is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    record_one(&mut bystander, 1).unwrap();
    let reader = recorder.reader().unwrap();
    assert_eq!(reader.verify().unwrap(), []);
    let events: Vec<Event> = reader
        .log(LogFilter::default())
        .map(|row| match row.unwrap().content {
            RowContent::Event(event) => *event,
            RowContent::Unreadable(cause) => panic!("{cause}"),
        })
        .collect();
    let requests = events.iter().filter(|event| matches!(event, Event::Request(r) if r.session == first)).count();
    assert!(u64::try_from(requests).unwrap() >= receipts, "{requests} of {receipts}");
    assert_eq!(events.iter().filter(|event| matches!(event, Event::SessionEnd(_))).count(), 1);
    let recovered = events.iter().find_map(|event| match event {
        Event::Admin(admin) if admin.what == "store-recovered" => Some(admin.detail.clone()),
        _ => None,
    });
    assert!(recovered.unwrap().contains("no space left"));
    drop(fs::read_dir(disk.path()).unwrap());
}

fn remount_bigger(path: &Path) {
    rustix::mount::mount_remount(path, MountFlags::empty(), "size=64m").unwrap();
}
