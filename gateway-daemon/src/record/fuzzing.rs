//! What a damaged store feeds to its readers.

use super::{
    Event, SessionId, Time,
    block::{Block, Builder, Chunk, Content, KIND_EVENT},
    index,
    pack::{CHUNK, Packer, message_len, unpack, whole_messages},
    window::{Head, SessionRow},
};

/// A row of each table that could be these bytes: blocks, chunks, index, session rows, heads. What reads is bounded by what was
/// read, and what was read as an event is written and read as the same.
pub fn record(data: &[u8]) {
    let Some((&table, value)) = data.split_first() else { return };
    match table % 5 {
        0 => block(value),
        1 => frames(value),
        2 => chunk(value),
        3 => {
            for session in [0, 1, 7, u64::MAX] {
                if let Ok(blocks) = index::find(value, session) {
                    assert!(blocks.len() <= value.len());
                }
            }
        }
        _ => rows(value),
    }
}

/// A block as the file might have it; its hash is believed as long as nobody checks it.
fn block(value: &[u8]) {
    let Ok(block) = Block::parse(1, value) else { return };
    let mut last = (0, block.time);
    for frame in block.frames().flatten() {
        assert!(frame.seq > last.0 && frame.time >= last.1, "events go backwards");
        last = (frame.seq, frame.time);
        content(&frame.content());
    }
    assert!(usize::try_from(last.0).is_ok_and(|count| count <= value.len()));
    if block.check().is_ok() {
        let mut changed = value.to_vec();
        if let Some(byte) = changed.last_mut() {
            *byte ^= 1;
        }
        assert!(Block::parse(1, &changed).is_ok_and(|block| block.check().is_err()), "a changed block still holds");
    }
}

/// A content behind a block's header that holds.
fn frames(value: &[u8]) {
    let Some((&kind, value)) = value.split_first() else { return };
    let mut builder = Builder::new(1, [0; 32], Time(1));
    if !builder.fits(value.len()) {
        return;
    }
    builder.push(Time(2), kind % 5, value);
    builder.push(Time(1), KIND_EVENT, value);
    let (written, _) = builder.finish();
    let Ok(block) = Block::parse(1, &written) else { unreachable!("what was written is a block") };
    assert!(block.check().is_ok());
    let frames: Vec<_> = block.frames().flatten().collect();
    assert!(frames.len() == 2 && frames.iter().all(|frame| frame.content == value));
    for frame in &frames {
        content(&frame.content());
        if let Content::Event(event) = frame.content() {
            assert_eq!(frame.session(), event.session());
        }
    }
}

fn content(content: &Content<'_>) {
    match content {
        Content::Event(event) => {
            let written = minicbor::to_vec(event.as_ref()).unwrap_or_default();
            assert!(minicbor::decode::<Event>(&written).is_ok_and(|again| again == **event), "an event changes");
            if let Ok(json) = serde_json::to_string(event) {
                assert!(serde_json::from_str::<Event>(&json).is_ok_and(|again| again == **event), "{json}");
            }
        }
        Content::Answer(bytes) | Content::CopyIn(bytes) => stored(&bytes.chunk),
        Content::Spilled(spilled) => spilled.chunks.iter().for_each(stored),
        Content::Unknown(why) => assert!(why.len() < 1000, "an error repeats what it could not read"),
    }
}

/// A chunk that lies in the block itself.
fn stored(chunk: &Chunk<'_>) {
    let Some(inline) = chunk.inline else { return };
    if let Ok(raw) = unpack(chunk.coding, chunk.raw_len, inline) {
        assert!(raw.len() <= CHUNK);
    }
}

/// Bytes on their way to the disk and back, whatever they are; and stored bytes that nobody wrote.
fn chunk(value: &[u8]) {
    if let Ok(chunk) = minicbor::decode::<Chunk<'_>>(value) {
        stored(&chunk);
    }
    let raw: Vec<u8> = value.iter().copied().cycle().take(value.len().saturating_mul(7).min(CHUNK)).collect();
    let mut data = b"before".to_vec();
    let packed = Packer::default().pack(&raw, &mut data);
    let stored = data.get(packed.start..packed.end).unwrap_or_default();
    assert!(stored.len() <= raw.len(), "packing makes it longer");
    assert_eq!(unpack(packed.coding, packed.raw_len, stored).as_deref(), Ok(raw.as_slice()));
    for room in [0, 1, 5, value.len() / 2, value.len()] {
        let whole = whole_messages(value, 0, room);
        assert!(whole <= room && whole <= value.len());
        let mut at = 0;
        while at < whole {
            at = at.saturating_add(message_len(value, at).unwrap_or(usize::MAX));
        }
        assert_eq!(at, whole, "a chunk ends within a message");
    }
}

fn rows(value: &[u8]) {
    if let Ok(head) = minicbor::decode::<Head>(value) {
        let written = minicbor::to_vec(&head).unwrap_or_default();
        assert!(minicbor::decode::<Head>(&written).is_ok_and(|again| again == head));
    }
    if let Ok(row) = SessionRow::decode(SessionId(1), value, "window".as_ref()) {
        let written = minicbor::to_vec(&row).unwrap_or_default();
        let again = SessionRow::decode(SessionId(1), &written, "window".as_ref());
        assert!(again.is_ok_and(|again| again == row));
    }
}
