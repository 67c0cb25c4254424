//! What an agent is told of a statement that the machine refuses by itself, without a policy.

use crate::{
    limits::Over,
    protocol::postgres::answer::{ErrorAnswer, LIMIT, REFUSED, Severity, USED_UP},
};

/// What runs by name changes names, or runs yet another.
pub(super) fn not_plain() -> ErrorAnswer {
    ErrorAnswer {
        severity: Severity::Error,
        sqlstate: REFUSED,
        message: "Weir refused this statement: it runs by name what neither returns nor changes rows".to_owned(),
        detail: "EXECUTE and FETCH are followed to SELECT, INSERT, UPDATE, DELETE, MERGE and their kin alone."
            .to_owned(),
        hint: "send the statement itself".to_owned(),
        position: None,
    }
}

/// FunctionCall, which libpq calls the fast path.
pub(super) fn no_function_call() -> ErrorAnswer {
    ErrorAnswer {
        severity: Severity::Error,
        sqlstate: REFUSED,
        message: "Weir refused this function call: it names a function by its OID".to_owned(),
        detail: "The message FunctionCall (libpq's fast path, by which it serves large objects) is never forwarded."
            .to_owned(),
        hint: "call the function in a SELECT".to_owned(),
        position: None,
    }
}

/// A limit that the session has reached.
pub(super) fn over(message: String) -> ErrorAnswer {
    let (detail, hint) = (String::new(), String::new());
    ErrorAnswer { severity: Severity::Error, sqlstate: LIMIT, message, detail, hint, position: None }
}

/// An amount that the agent has used up.
pub(super) fn used_up(over: &Over) -> ErrorAnswer {
    ErrorAnswer {
        severity: Severity::Error,
        sqlstate: USED_UP,
        message: format!("Weir refused this statement: {over}"),
        detail: "All sessions of the agent are counted together.".to_owned(),
        hint: "ask for less, by LIMIT, a narrower WHERE or an aggregate, once it is free again".to_owned(),
        position: None,
    }
}

/// What the server itself says of a prepared statement that does not exist.
pub(super) fn no_statement(name: &str) -> ErrorAnswer {
    let message = match name {
        "" => "unnamed prepared statement does not exist".to_owned(),
        name => format!("prepared statement \"{name}\" does not exist"),
    };
    let (detail, hint) = (String::new(), String::new());
    ErrorAnswer { severity: Severity::Error, sqlstate: "26000", message, detail, hint, position: None }
}

/// What the server itself says of a portal that does not exist.
pub(super) fn no_portal(name: &str) -> ErrorAnswer {
    let (detail, hint) = (String::new(), String::new());
    let message = format!("portal \"{name}\" does not exist");
    ErrorAnswer { severity: Severity::Error, sqlstate: "34000", message, detail, hint, position: None }
}

/// The same of a cursor: one and the same thing, under the name that SQL has for it.
pub(super) fn no_cursor(name: &str) -> ErrorAnswer {
    ErrorAnswer { message: format!("cursor \"{name}\" does not exist"), ..no_portal(name) }
}
