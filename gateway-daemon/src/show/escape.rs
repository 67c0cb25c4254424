//! Making hostile text harmless and readable.
//!
//! - What has no shape of its own is shown as an escape: controls, bidi and zero-width characters, separators, private,
//!   unassigned and default-ignorable code points, marks piled on one letter. `\n`, `\r`, `\t` in the short form, others
//!   as `\u{202e}`; a backslash as `\\`, so that an escape cannot be forged.
//! - `⟦` and `⟧` belong to Weir: in text from outside they are escaped.
//! - Words that mix scripts (`pаypal` with a Cyrillic `а`), and text that runs from right to left, are named behind it.
//! - What is cut is counted.

use std::fmt::{self, Write};

use serde::Serialize;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};
use unicode_script::{Script, ScriptExtension, UnicodeScript};

/// Marks on one letter that are shown as they are; Vietnamese needs two.
const MARKS: usize = 2;
/// Words of mixed scripts that are named; the others are counted.
const NAMED: usize = 4;

/// Text from outside on one line: at most `limit` characters of it, the rest counted.
pub fn line(text: &str, limit: usize) -> String {
    show(text, limit, Breaks::Escaped)
}

/// Text from outside on as many lines as it has; otherwise as [`line`].
pub fn lines(text: &str, limit: usize) -> String {
    show(text, limit, Breaks::Kept)
}

/// A value as one line of JSON: exact when it is read, and harmless when it is printed, since what [`line`] would escape
/// is escaped in JSON's own way.
///
/// # Errors
/// When the value cannot be JSON (a map with keys that are no strings).
pub fn json(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let exact = serde_json::to_string(value)?;
    if exact.bytes().all(|byte| byte.is_ascii() && byte != 0x7f) {
        return Ok(exact);
    }
    let mut out = String::with_capacity(exact.len());
    for c in exact.chars() {
        // Beyond ASCII, and DEL, stand in strings alone.
        if is_visible(c) {
            out.push(c);
        } else {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| put(&mut out, format_args!("\\u{unit:04x}")));
        }
    }
    Ok(out)
}

/// Bytes from outside: as text where they are UTF-8, else in hexadecimal with `\x` before it, as `bytea` is written.
pub(super) fn bytes(bytes: &[u8], limit: usize) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => line(text, limit),
        Err(_) => hex(bytes, limit),
    }
}

/// Bytes in hexadecimal with `\x` before them.
pub(super) fn hex(bytes: &[u8], limit: usize) -> String {
    let shown = bytes.get(..limit / 2).unwrap_or(bytes);
    let mut out = String::from("\\x");
    for byte in shown {
        put(&mut out, format_args!("{byte:02x}"));
    }
    if shown.len() < bytes.len() {
        put(&mut out, format_args!("⟦… {} more bytes⟧", bytes.len() - shown.len()));
    }
    out
}

/// Whether line breaks stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breaks {
    Kept,
    Escaped,
}

fn show(text: &str, limit: usize, breaks: Breaks) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    let mut chars = text.chars();
    let mut marks = 0;
    // A mark at the beginning would sit on what stands before.
    let mut bare = true;
    for c in chars.by_ref().take(limit) {
        marks = if is_mark(c) { marks + 1 } else { 0 };
        match c {
            '\n' if breaks == Breaks::Kept => out.push('\n'),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            ' '..='~' => out.push(c),
            _ if marks > MARKS || marks > 0 && bare || !is_visible(c) => {
                put(&mut out, format_args!("\\u{{{:x}}}", u32::from(c)));
            }
            _ => out.push(c),
        }
        bare = c == '\n' || marks > 0 && bare;
    }
    let more = chars.count();
    if more > 0 {
        put(&mut out, format_args!("⟦… {more} more characters⟧"));
    }
    // Of the whole text: what is cut may not hide what is wrong with it.
    flag(text, &mut out);
    out
}

fn flag(text: &str, out: &mut String) {
    if text.is_ascii() {
        return;
    }
    let mixed: Vec<(&str, String)> = words(text).filter_map(|word| Some((word, mixed_scripts(word)?))).collect();
    for (word, scripts) in mixed.iter().take(NAMED) {
        out.push_str("⟦mixed scripts: `");
        // A word is letters, digits and marks; short, since it is only to be found again.
        out.extend(word.chars().take(63).filter(|c| is_visible(*c)));
        put(out, format_args!("` is {scripts}⟧"));
    }
    if let more @ 1.. = mixed.len().saturating_sub(NAMED) {
        put(out, format_args!("⟦… {more} more words of mixed scripts⟧"));
    }
    if text.chars().any(runs_leftward) {
        out.push_str("⟦has right-to-left text⟧");
    }
}

/// The words of a text as an identifier or its parts: letters, digits, marks and `_`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_' || is_mark(c))).filter(|word| !word.is_ascii())
}

/// The scripts of a word that cannot all belong to one writing system.
fn mixed_scripts(word: &str) -> Option<String> {
    let together = word.chars().fold(ScriptExtension::default(), |all, c| all.intersection(c.script_extension()));
    if !together.is_empty() {
        return None;
    }
    let mut scripts: Vec<&str> = Vec::new();
    for c in word.chars() {
        let script = c.script();
        let name = script.full_name();
        if script != Script::Common && script != Script::Inherited && !scripts.contains(&name) {
            scripts.push(name);
        }
    }
    // Japanese and Korean write several scripts in a word.
    let east_asian = |name: &&str| ["Han", "Hiragana", "Katakana", "Hangul", "Bopomofo"].contains(name);
    (scripts.len() > 1 && !scripts.iter().all(east_asian)).then(|| scripts.join(" and "))
}

fn is_mark(c: char) -> bool {
    !c.is_ascii()
        && matches!(
            c.general_category(),
            GeneralCategory::NonspacingMark | GeneralCategory::SpacingMark | GeneralCategory::EnclosingMark
        )
}

/// Whether a character has a shape of its own that means what it looks like.
fn is_visible(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    match c.general_category() {
        GeneralCategory::Control
        | GeneralCategory::Format
        | GeneralCategory::Surrogate
        | GeneralCategory::PrivateUse
        | GeneralCategory::Unassigned
        | GeneralCategory::LineSeparator
        | GeneralCategory::ParagraphSeparator
        // Spaces that are not the space.
        | GeneralCategory::SpaceSeparator => false,
        _ => !is_ignorable(c) && !matches!(c, '⟦' | '⟧'),
    }
}

/// Letters and marks that are not drawn: `Default_Ignorable_Code_Point` (Unicode 16, DerivedCoreProperties.txt) beyond
/// the category Format, and the blank Braille pattern.
const fn is_ignorable(c: char) -> bool {
    matches!(c,
        '\u{34f}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{2065}'
        | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Letters that a terminal may reorder with their neighbours: the blocks of Hebrew, Arabic and the other scripts that
/// Unicode reserves for right-to-left (DerivedBidiClass.txt, defaults of R and AL).
const fn runs_leftward(c: char) -> bool {
    matches!(c,
        '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefe}' | '\u{10800}'..='\u{10fff}'
        | '\u{1e800}'..='\u{1efff}')
}

fn put(out: &mut String, text: fmt::Arguments<'_>) {
    // A `String` takes all that is written to it.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_becomes_harmless() {
        let cases = [
            ("plain", "SELECT 1"),
            ("ansi", "\x1b[2J\x1b[31mred\x07"),
            ("c1 control", "\u{9b}31m"),
            ("newline and carriage return", "ok\r\nadmin: approved"),
            ("right-to-left override", "user\u{202e}txt.exe\u{2066}x\u{2069}"),
            ("zero width", "pass\u{200b}word\u{200d}\u{feff}"),
            ("homoglyph", "SELECT * FROM p\u{430}yments"),
            ("one script", "SELECT имя FROM таблица"),
            ("japanese", "東京タワーの名前"),
            ("hebrew", "שלום"),
            ("forged escape", "\\u{202e}"),
            ("forged note", "⟦… 5 more characters⟧"),
            ("zalgo", "a\u{301}\u{302}\u{303}\u{304}"),
            ("mark at the front", "\u{301}a"),
            ("accents", "é Việt ñ"),
            ("no-break space", "a\u{a0}b\u{3000}c"),
            ("invisible letters", "a\u{3164}b\u{115f}\u{2800}"),
            ("tags", "x\u{e0041}\u{e0042}"),
            ("private and unassigned", "\u{e000}\u{378}"),
            ("emoji", "🙂"),
            ("empty", ""),
        ];
        let shown: Vec<String> = cases.iter().map(|(what, text)| format!("{what:28} {}", line(text, 40))).collect();
        insta::assert_snapshot!(shown.join("\n"));
    }

    #[test]
    fn what_is_cut_is_counted_and_still_judged() {
        assert_eq!(line("abcdef", 4), "abcd⟦… 2 more characters⟧");
        assert_eq!(line("abcd", 4), "abcd");
        assert_eq!(line("ab pаypal", 2), "ab⟦… 7 more characters⟧⟦mixed scripts: `pаypal` is Latin and Cyrillic⟧");
        assert_eq!(hex(&[0xff, 0, 1], 4), "\\xff00⟦… 1 more bytes⟧");
    }

    #[test]
    fn lines_keep_their_breaks_and_nothing_else() {
        assert_eq!(lines("SELECT 1\n\tFROM x\r\n\x0bY", 100), "SELECT 1\n\\tFROM x\\r\n\\u{b}Y");
    }

    proptest::proptest! {
        #[test]
        fn json_is_exact_and_harmless(text in "\\PC*|[\\x00-\\x1f\x7f\u{80}-\u{9f}\u{200b}-\u{206f}\u{e0041}a-z\"\\\\]*") {
            let shown = json(&text).unwrap();
            proptest::prop_assert!(shown.chars().all(is_visible), "{}", shown);
            proptest::prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }

        #[test]
        fn nothing_shown_can_move_hide_or_pretend(text in "\\PC*|[\\x00-\\x1f\u{80}-\u{9f}\u{200b}-\u{206f}a-z\\\\⟦⟧]*") {
            let shown = line(&text, usize::MAX);
            let own = shown.split('⟦').next().unwrap_or_default();
            proptest::prop_assert!(own.chars().all(is_visible));
            proptest::prop_assert!(text.chars().all(is_visible) || shown != text);
            proptest::prop_assert_eq!(shown.matches('⟦').count(), shown.matches('⟧').count());
        }
    }
}
