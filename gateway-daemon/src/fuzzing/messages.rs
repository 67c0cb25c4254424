//! The messages of agent and server, each by itself.

use crate::protocol::postgres::{
    backend,
    frame::{HEADER, Header, MessageLimit},
    frontend::{self, MAX_NAME_BYTES, Message, Target},
    startup::{self, MAX_STARTUP_BYTES, Opening},
};

const LIMIT: MessageLimit = MessageLimit { bytes: 1 << 16, name: "limits.message_bytes" };

/// A message of the agent: what was decoded is all that the bytes say.
pub fn frontend(data: &[u8]) {
    let Ok(Some(header)) = Header::decode(data, LIMIT) else { return };
    assert!(header.frame() <= LIMIT.bytes + 1);
    let Some(body) = data.get(HEADER..header.frame()) else { return };
    let Ok(message) = frontend::decode(header.tag, body) else { return };
    assert!(message.longest_name() <= MAX_NAME_BYTES);
    if let Some(written) = written(&message) {
        assert_eq!(written, body, "a message has one reading");
    }
    // More than the message is no message: nothing can hide behind the last field.
    let longer = [body, b"\0"].concat();
    // A FunctionCall is refused whole, whatever is in it.
    assert!(message == Message::FunctionCall || frontend::decode(header.tag, &longer).is_err());
    if let Message::Bind(bind) = message {
        assert_eq!(bind.parameters().count(), bind.formats().count());
        let held: usize = bind.parameters().flatten().map(<[u8]>::len).sum();
        assert!(held <= body.len());
    }
}

/// The body that a message was decoded from, where its fields are all of it.
fn written(message: &Message<'_>) -> Option<Vec<u8>> {
    let text = |text: &str| [text.as_bytes(), b"\0"].concat();
    let of = |target: &Target<'_>| match target {
        Target::Statement(name) => [b"S".to_vec(), text(name)].concat(),
        Target::Portal(name) => [b"P".to_vec(), text(name)].concat(),
    };
    match message {
        Message::Query { sql } => Some(text(sql)),
        Message::Parse { name, sql, types } => {
            let count = u16::try_from(types.len() / 4).unwrap_or(u16::MAX).to_be_bytes();
            Some([text(name), text(sql), count.to_vec(), types.to_vec()].concat())
        }
        Message::Describe { target } | Message::Close { target } => Some(of(target)),
        Message::Sync | Message::Flush | Message::CopyDone | Message::Terminate => Some(Vec::new()),
        Message::Bind(_) | Message::Execute { .. } | Message::CopyFail | Message::FunctionCall => None,
    }
}

/// A message of the server, as far as a session reads it.
pub fn backend(data: &[u8]) {
    if let Ok(fields) = backend::error_fields(data) {
        // A byte that is no UTF-8 becomes a replacement of three.
        assert!(fields.sqlstate.len() + fields.message.len() <= 3 * data.len());
    }
    if let Ok(tag) = backend::command_tag(data) {
        assert!(data.starts_with(tag.as_bytes()));
    }
    if backend::parameter_status(data).is_ok() {
        let mut parts = data.split(|&byte| byte == 0);
        let (name, value) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        assert!(name != b"standard_conforming_strings" || value == b"on");
        assert!(name != b"client_encoding" || value.eq_ignore_ascii_case(b"UTF8"));
    }
}

/// What an agent says first.
pub fn startup(data: &[u8]) {
    let whole = startup::decode(data);
    let Ok(Some((opening, used))) = &whole else { return };
    assert!(*used <= data.len().min(MAX_STARTUP_BYTES));
    for cut in 0..*used {
        assert_eq!(startup::decode(data.get(..cut).unwrap_or_default()), Ok(None), "a part asks for the rest");
    }
    match opening {
        Opening::DirectTls => assert_eq!(*used, 0),
        Opening::TlsRequest | Opening::GssRequest => assert_eq!(*used, data.len(), "nothing is stuffed behind it"),
        Opening::Cancel(_) => assert_eq!(*used, 16),
        Opening::Startup(startup) => {
            assert!(!startup.user.is_empty() && !startup.database.is_empty());
            for (name, value) in &startup.settings {
                assert!(!["client_encoding", "application_name"].contains(&name.as_str()), "{name}");
                assert!(*name == name.to_ascii_lowercase());
                assert!(!name.contains('\0') && !value.contains('\0'));
            }
        }
    }
}
