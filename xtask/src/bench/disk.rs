//! The disk's own time, to which a durable record is compared.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

/// How many are timed each time.
const COUNT: usize = 20;
const BLOCK: [u8; 4096] = [0x57; 4096];

/// Microseconds of appending 4 KiB and `fdatasync`, several times.
pub(super) fn fdatasync(folder: &Path) -> Result<Vec<f64>> {
    let path = folder.join("fdatasync");
    let mut file = File::create(&path)?;
    let mut times = Vec::with_capacity(COUNT);
    for _ in 0..COUNT {
        let begin = Instant::now();
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(path)?;
    Ok(times)
}
