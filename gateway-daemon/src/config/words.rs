//! What the parser of TOML and serde say, in the words of the file, with the mend.

use super::tree::SINGLE;

/// What a key that must be there looks like.
const EXAMPLES: [(&str, &str, &str); 12] = [
    ("issuer", "name", "\"corp\""),
    ("issuer", "issuer", "\"https://idp.example.com\""),
    ("issuer", "audience", "\"weir\""),
    ("issuer", "algorithms", "[\"RS256\"]"),
    ("agent", "name", "\"claude\""),
    ("agent", "user", "\"agent-claude\""),
    ("agent", "issuer", "\"corp\""),
    ("connection", "name", "\"orders\""),
    ("connection", "protocol", "\"postgres\""),
    ("connection", "host", "\"db.internal\""),
    ("connection", "user", "\"weir_orders\""),
    ("protect", "address", "\"10.0.0.5:5432\""),
];

/// For a key that belongs to no table.
pub(super) const ABOVE: &str = "stands above all tables; put it below the header of its own, such as `[daemon]`";

/// What stands between `before` and the next backtick.
pub(super) fn quoted_after<'m>(message: &'m str, before: &str) -> Option<&'m str> {
    message.strip_prefix(before)?.split('`').next()
}

/// What to write where a list of tables has the header of one.
pub(super) fn doubled(table: &str) -> String {
    format!("may stand several times, so its header has two brackets: `[[{table}]]`")
}

/// What to write where a key is missing in a table of some kind.
pub(super) fn missing(kind: &str, key: &str) -> String {
    match EXAMPLES.iter().find(|(of, name, _)| *of == kind && *name == key) {
        Some((_, _, example)) => format!("is missing; add it, such as `{key} = {example}`"),
        None if key == "reason" => "is missing; say why, for whoever reads `weir status`".to_owned(),
        None => "is missing; add it".to_owned(),
    }
}

/// What to write in place of a key that does not exist, or of a table. `message` lists those that do.
pub(super) fn unknown(key: &str, message: &str, is_table: bool) -> String {
    let known: Vec<&str> =
        message.split_once("expected ").map_or("", |(_, list)| list).split('`').skip(1).step_by(2).collect();
    let shown = |key: &str| match is_table {
        true if SINGLE.contains(&key) => format!("`[{key}]`"),
        true => format!("`[[{key}]]`"),
        false => format!("`{key}`"),
    };
    let what = if is_table { "table" } else { "key" };
    match nearest(key, &known) {
        Some(near) => format!("there is no such {what}; did you mean {}?", shown(near)),
        None => {
            let all: Vec<String> = known.iter().map(|key| shown(key)).collect();
            format!("there is no such {what}; there are {}", all.join(", "))
        }
    }
}

/// The one of `known` that was probably meant.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_ascii_lowercase();
    let near = known.iter().map(|known| (distance(&word, &known.to_ascii_lowercase()), *known)).min()?;
    // A third of the letters may be wrong: more is another word.
    (near.0 <= near.1.len().div_ceil(3)).then_some(near.1)
}

/// Letters to insert, remove, replace or swap with the next until `a` is `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let (mut before, mut row): (Vec<usize>, Vec<usize>) = (Vec::new(), (0..=b.len()).collect());
    let mut last = None;
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i.saturating_add(1)];
        let mut left = None;
        for (j, &to) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX);
            let mut least = at(&row, j).saturating_add(usize::from(from != to));
            least = least.min(at(&row, j.saturating_add(1)).saturating_add(1)).min(at(&next, j).saturating_add(1));
            if j > 0 && last == Some(to) && left == Some(from) {
                least = least.min(at(&before, j.saturating_sub(1)).saturating_add(1));
            }
            next.push(least);
            left = Some(to);
        }
        last = Some(from);
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or_default()
}

/// What the parser says of TOML itself, with what it most often means.
pub(super) fn syntax(message: &str) -> String {
    let (said, mend) = if message.starts_with("duplicate key") {
        (message, "each key, and each table with single brackets, stands once")
    } else if message.starts_with("string values must be quoted") {
        ("there is no value, or a text without quotes", "a text stands between two quotes")
    } else if message.contains("basic string") {
        (
            "a text has no end, or an escape that does not exist",
            "it stands between two quotes on one line, `\\` written twice",
        )
    } else {
        (message, "each line is a `[table]`, a `key = value` or a `# comment`")
    };
    format!("this is no TOML: {said}; {mend}")
}

/// What serde says of a value of another type, in the words of the file. Texts are not quoted: one may be a secret in
/// the wrong place.
pub(super) fn plainly(message: &str) -> String {
    let said = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, expected)) = said.and_then(|said| said.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let number = found.strip_prefix("integer `").and_then(|rest| rest.strip_suffix('`'));
    let found = match (number, found) {
        (Some(number), _) => format!("the number {number}"),
        (None, found) if found.starts_with("string") => "a text".to_owned(),
        (None, found) if found.starts_with("boolean") => "true or false".to_owned(),
        (None, found) if found.starts_with("floating") => "a number with a fraction".to_owned(),
        (None, "sequence") => "a list".to_owned(),
        (None, "map") => "a table".to_owned(),
        (None, other) => other.to_owned(),
    };
    let expected = match expected {
        "u8" => "a whole number from 0 to 255, without quotes",
        "u16" => "a whole number from 0 to 65535, without quotes",
        "u32" | "u64" | "usize" => "a whole number, not negative, without quotes",
        "a string" | "path string" if number.is_some() => {
            "a text in quotes; a duration has its unit in it, as in \"30s\", \"5m\" or \"24h\""
        }
        "a string" | "path string" => "a text in quotes",
        "a boolean" => "true or false",
        "a sequence" => "a list in square brackets",
        _ if expected.starts_with("struct ") => "a table, such as `[daemon]`",
        other => other,
    };
    format!("is {found}, and must be {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_of_words_counts_letters_that_are_wrong() {
        for (a, b, expected) in
            [("", "", 0), ("host", "host", 0), ("hots", "host", 1), ("hst", "host", 1), ("a", "b", 1)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
        assert_eq!(distance("", "port"), 4);
    }

    #[test]
    fn a_word_far_from_all_is_near_to_none() {
        assert_eq!(nearest("databse", &["database", "port"]), Some("database"));
        assert_eq!(nearest("sslmode", &["database", "port", "tls"]), None);
        assert_eq!(nearest("x", &[]), None);
    }
}
