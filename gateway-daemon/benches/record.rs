//! What the record costs beside bare redb in the same run: `cargo bench --bench record -- [SECONDS] [FOLDER]`.
//!
//! Rounds of both stores take turns; the medians of their ratios are what counts, single rates follow the machine.

use std::{
    hint::black_box,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use gateway_daemon::record::{
    DecisionRecord, Event, Outcome, Recorder, Request, RequestKind, SessionId, StoreSettings,
};
use redb::{Database, TableDefinition};
use tokio::sync::oneshot;

const ROUNDS: usize = 5;
const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
/// A session may run so far ahead of the disk.
const AHEAD: u64 = 4 * 1024 * 1024;
const PIECE: usize = 65_400;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let seconds = args.next().map_or(Ok(1.0), |text| text.parse())?;
    let parent = args.next().unwrap_or_else(|| ".".into());
    let time = Duration::from_secs_f64(seconds);
    println!(
        "{:24} {:>10} {:>10} {:>7} {:>9} {:>9} {:>9} {:>9}",
        "", "redb /s", "weir /s", "ratio", "redb us", "weir us", "redb B", "weir B"
    );
    for (what, writers, size) in [
        ("300 B, 1 writer", 1, 300),
        ("300 B, 8 writers", 8, 300),
        ("300 B, 64 writers", 64, 300),
        ("64 KiB, 8 writers", 8, PIECE),
    ] {
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let dir = tempfile::tempdir_in(&parent)?;
            rounds.push((bare(dir.path(), writers, size, time)?, weir(dir.path(), writers, size, time)?));
        }
        rounds.sort_by(|a, b| (a.1.rate / a.0.rate).total_cmp(&(b.1.rate / b.0.rate)));
        if let Some((bare, weir)) = rounds.get(ROUNDS / 2) {
            println!(
                "{what:24} {:10.0} {:10.0} {:7.2} {:9.1} {:9.1} {:9.0} {:9.0}",
                bare.rate,
                weir.rate,
                weir.rate / bare.rate,
                bare.cpu_us,
                weir.cpu_us,
                bare.bytes,
                weir.bytes
            );
        }
    }
    Ok(())
}

/// Of one round: records a second, own CPU and bytes written to the disk for each.
struct Cost {
    rate: f64,
    cpu_us: f64,
    bytes: f64,
}

fn measured(run: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<Cost> {
    let (cpu, bytes, start) = (cpu()?, written()?, Instant::now());
    let records = float(run()?.max(1));
    let elapsed = start.elapsed().as_secs_f64();
    let cpu_us = (cpu_seconds(self::cpu()?) - cpu_seconds(cpu)) * 1e6 / records;
    Ok(Cost { rate: records / elapsed, cpu_us, bytes: float(written()? - bytes) / records })
}

/// A record is a request and its answer; with 64 KiB a piece of an answer alone, and the session runs ahead.
fn weir(dir: &Path, writers: u64, size: usize, time: Duration) -> anyhow::Result<Cost> {
    let (recorder, _) = Recorder::open(StoreSettings::new(dir.join("weir")))?;
    let done = Arc::new(AtomicU64::new(0));
    measured(|| {
        runtime()?.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for writer in 0..writers {
                let (recorder, done) = (recorder.clone(), done.clone());
                tasks.spawn(async move { weir_session(&recorder, writer, size, time, &done).await });
            }
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            Ok(done.load(Ordering::Relaxed))
        })
    })
}

async fn weir_session(
    recorder: &Recorder,
    writer: u64,
    size: usize,
    time: Duration,
    done: &AtomicU64,
) -> anyhow::Result<()> {
    let id = recorder.next_session();
    let mut log = recorder.session(id);
    let bytes = noise(writer, size.min(PIECE));
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < time {
        number += 1;
        if size == PIECE {
            log.append_answer(1, &bytes)?;
            log.commit();
            log.below(AHEAD).await?;
        } else {
            log.append(&request(id, number))?;
            log.append_answer(number, bytes.get(..200).unwrap_or(&bytes))?;
            let upto = log.append(&outcome(id, number))?;
            black_box(log.receipt(upto).await?);
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    let all = log.appended();
    log.receipt(all).await?;
    Ok(())
}

type Waiting = (Vec<u8>, oneshot::Sender<()>);

/// The least that does the same: one thread that commits all that waits, a row for each record.
fn bare(dir: &Path, writers: u64, size: usize, time: Duration) -> anyhow::Result<Cost> {
    let db = Database::builder().set_cache_size(48 * 1024 * 1024).create(dir.join("bare.redb"))?;
    let (queue, waiting) = mpsc::channel::<Waiting>();
    let thread = std::thread::spawn(move || bare_writer(&db, &waiting));
    let cost = measured(|| {
        runtime()?.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for writer in 0..writers {
                let queue = queue.clone();
                tasks.spawn(async move {
                    let bytes = noise(writer, size);
                    let (start, mut records) = (Instant::now(), 0);
                    let mut ahead = std::collections::VecDeque::new();
                    while start.elapsed() < time {
                        let (done, told) = oneshot::channel();
                        queue.send((bytes.clone(), done))?;
                        ahead.push_back(told);
                        // As far ahead as a session of the record may run, or not at all.
                        while ahead.len() > if size == PIECE { 64 } else { 0 } {
                            if let Some(told) = ahead.pop_front() {
                                told.await?;
                            }
                        }
                        records += 1;
                    }
                    for told in ahead {
                        told.await?;
                    }
                    anyhow::Ok(records)
                });
            }
            let mut records = 0;
            while let Some(ended) = tasks.join_next().await {
                records += ended??;
            }
            Ok(records)
        })
    })?;
    drop(queue);
    thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
    Ok(cost)
}

fn bare_writer(db: &Database, waiting: &mpsc::Receiver<Waiting>) -> anyhow::Result<()> {
    let mut key = 0;
    while let Ok(first) = waiting.recv() {
        let mut told = Vec::new();
        let mut bytes = 0;
        let txn = db.begin_write()?;
        {
            let mut table = txn.open_table(TABLE)?;
            for (record, done) in std::iter::once(first).chain(std::iter::from_fn(|| waiting.try_recv().ok())) {
                key += 1;
                bytes += record.len();
                table.insert(key, record.as_slice())?;
                told.push(done);
                if bytes > 4 * 1024 * 1024 {
                    break;
                }
            }
        }
        txn.commit()?;
        // A writer that has gone does not wait.
        told.into_iter().for_each(|done| done.send(()).unwrap_or_default());
    }
    Ok(())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn request(session: SessionId, request: u64) -> Event {
    Event::Request(Request {
        session,
        request,
        kind: RequestKind::Simple,
        sql: format!("SELECT abalance FROM pgbench_accounts WHERE aid = {request};"),
        parameters: Vec::new(),
        formats: Vec::new(),
        types: Vec::new(),
        accesses: vec!["select public.pgbench_accounts (abalance, aid)".into()],
        decision: DecisionRecord {
            allowed: true,
            policies: vec!["read-only".into()],
            set: [7; 32],
            reason: String::new(),
            denied: None,
        },
        runs: None,
    })
}

fn outcome(session: SessionId, request: u64) -> Event {
    Event::Outcome(Outcome {
        session,
        request,
        tags: vec!["SELECT 1".into()],
        rows: 1,
        bytes: 200,
        digest: [7; 32],
        truncated: false,
        error: None,
        duration: Duration::from_micros(300),
    })
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes().first().copied().unwrap_or(0)
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// User and system time of this process, in clock ticks (proc(5), stat fields 14 and 15).
fn cpu() -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, behind) = stat.rsplit_once(')').ok_or_else(|| anyhow::anyhow!("no name in stat"))?;
    Ok(behind.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum())
}

fn cpu_seconds(ticks: u64) -> f64 {
    float(ticks) / 100.0
}

/// Bytes that this process caused to be written to the disk (proc(5), io).
fn written() -> anyhow::Result<u64> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.ok_or_else(|| anyhow::anyhow!("no write_bytes"))?.parse()?)
}

/// Exact below 2^53, which no count here reaches.
#[expect(clippy::as_conversions, clippy::cast_precision_loss, reason = "there is no `From` for it")]
fn float(n: u64) -> f64 {
    n as f64
}
