//! What the tests of `sql` share: the catalogue of the corpora's database, as a server of version 15 gave it, and the
//! corpora themselves.

use std::{fs, path::PathBuf, sync::LazyLock};

use gateway_daemon::sql::{Catalog, Columns, PARSE_STACK_BYTES, StatementReading};
use serde_json::Value;

/// The catalogue snapshot of the corpora's database.
pub(crate) static CATALOG: LazyLock<Catalog> = LazyLock::new(|| {
    let answers: Vec<Vec<Vec<Option<String>>>> = serde_json::from_str(&corpus("catalog.json")).unwrap();
    Catalog::from_rows(answers).unwrap()
});

/// A case of the corpora: its name, its group, and the texts that the agent sends, in order.
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) agent: String,
    pub(crate) expect: String,
    pub(crate) texts: Vec<String>,
}

pub(crate) fn corpus(file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/corpora/postgres").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn cases(file: &str) -> Vec<Case> {
    let text = |value: &Value, key: &str| value[key].as_str().map(str::to_owned);
    corpus(file)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|case| Case {
            id: text(&case, "id").unwrap(),
            kind: text(&case, "kind").unwrap_or_default(),
            expect: text(&case, "expect").unwrap_or_default(),
            agent: text(&case, "agent").unwrap_or_else(|| "analyst".to_owned()),
            texts: text(&case, "sql")
                .into_iter()
                .chain(case["messages"].as_array().into_iter().flatten().flat_map(texts_of_message))
                .collect(),
        })
        .collect()
}

/// The SQL of one message; what an administrator does straight on the server is no agent's.
fn texts_of_message(message: &Value) -> Vec<String> {
    if message["by"] == "admin" {
        return Vec::new();
    }
    let extended = message["ext"].as_array().into_iter().flatten().filter_map(|step| match step[0].as_str() {
        Some("P") => step[2].as_str(),
        Some("Q") => step[1].as_str(),
        _ => None,
    });
    message["sql"].as_str().into_iter().chain(extended).map(str::to_owned).collect()
}

/// One line for each access, as the case files have them.
pub(crate) fn describe(statement: &StatementReading) -> Vec<String> {
    statement
        .accesses
        .iter()
        .map(|access| {
            let columns = match &access.columns {
                Columns::None => String::new(),
                Columns::Some(names) => format!(" ({})", names.iter().map(|n| &**n).collect::<Vec<_>>().join(", ")),
                Columns::All => " (*)".to_owned(),
            };
            format!("{} {}{columns}", access.action.name(), access.object)
        })
        .collect()
}

/// Runs a test on a stack like that of the daemon's workers.
pub(crate) fn on_a_big_stack(test: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(PARSE_STACK_BYTES).spawn(test).unwrap().join().unwrap();
}
