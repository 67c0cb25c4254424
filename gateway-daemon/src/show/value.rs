//! Values in PostgreSQL's binary formats, as the server itself would write them in text (`DateStyle` ISO, time zone UTC).
//! What cannot be read is shown in hexadecimal.

use std::{borrow::Cow, fmt::Write};

use super::{
    escape::{hex, line},
    postgres::{VALUE, take},
};

/// Types by OID (`pg_type.dat`).
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const OID: u32 = 26;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const CIDR: u32 = 650;
    pub(super) const INET: u32 = 869;
    pub(super) const DATE: u32 = 1082;
    pub(super) const TIME: u32 = 1083;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const INTERVAL: u32 = 1186;
    pub(super) const TIMETZ: u32 = 1266;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const UUID: u32 = 2950;
    pub(super) const JSONB: u32 = 3802;
    pub(super) const NUMBERS: [u32; 7] = [INT8, INT2, INT4, OID, FLOAT4, FLOAT8, NUMERIC];
    /// `"char"`, `name`, `text`, `json`, `xml`, `unknown`, `bpchar`, `varchar`: the binary form is the text.
    pub(super) const TEXTS: [u32; 8] = [18, 19, 25, 114, 142, 705, 1042, 1043];
    /// Arrays of the types above: an array names its elements' type itself.
    pub(super) const ARRAYS: [u32; 26] = [
        143, 199, 651, 1000, 1001, 1002, 1003, 1005, 1007, 1009, 1014, 1015, 1016, 1021, 1022, 1028, 1041, 1115, 1182,
        1183, 1185, 1187, 1231, 1270, 2951, 3807,
    ];
}

/// Zeros that a number may have beyond its own digits. It takes a few bytes to write a hundred thousand.
const ZEROS: usize = 1000;
/// Dimensions of an array (`MAXDIM`).
const DIMENSIONS: usize = 6;
/// From 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
const DAYS_TO_2000: i64 = 10_957;
const DAY: i64 = 86_400 * SECOND;
const SECOND: i64 = 1_000_000;

/// Whether values of a type are numbers, which keep to the right.
pub(super) fn is_number(kind: u32) -> bool {
    oid::NUMBERS.contains(&kind)
}

/// A value in the binary form of its type, on one line.
pub(super) fn binary(kind: u32, value: &[u8]) -> String {
    if oid::ARRAYS.contains(&kind)
        && let Some((text, left_out)) = array(value)
    {
        let mut out = line(&text, VALUE);
        if left_out > 0 {
            // A `String` takes all that is written to it.
            let _ = write!(out, "⟦… {left_out} more elements⟧");
        }
        return out;
    }
    match text(kind, value) {
        Some(text) => line(&text, VALUE),
        None => hex(value, VALUE),
    }
}

/// The text of a value that is no array; not safe to show yet.
fn text(kind: u32, value: &[u8]) -> Option<Cow<'_, str>> {
    let owned = match kind {
        oid::BOOL => exact(value).map(|[b]| if b == 0 { "f" } else { "t" }.to_owned()),
        oid::INT2 => exact(value).map(|v| i16::from_be_bytes(v).to_string()),
        oid::INT4 => exact(value).map(|v| i32::from_be_bytes(v).to_string()),
        oid::INT8 => exact(value).map(|v| i64::from_be_bytes(v).to_string()),
        oid::OID => exact(value).map(|v| u32::from_be_bytes(v).to_string()),
        oid::FLOAT4 => exact(value).map(f32::from_be_bytes).map(|v| float(v.into(), &format!("{v:e}"), 6)),
        oid::FLOAT8 => exact(value).map(f64::from_be_bytes).map(|v| float(v, &format!("{v:e}"), 15)),
        oid::NUMERIC => numeric(value),
        oid::DATE => exact(value).map(|v| date(i32::from_be_bytes(v))),
        oid::TIMESTAMP => exact(value).map(|v| timestamp(i64::from_be_bytes(v), "")),
        oid::TIMESTAMPTZ => exact(value).map(|v| timestamp(i64::from_be_bytes(v), "+00")),
        oid::TIME => exact(value).map(|v| clock(i64::from_be_bytes(v))),
        oid::TIMETZ => time_with_zone(value),
        oid::INTERVAL => interval(value),
        oid::UUID => exact(value).map(|v| uuid(&v)),
        oid::INET | oid::CIDR => address(kind, value),
        oid::JSONB => return value.strip_prefix(&[1]).and_then(|json| str::from_utf8(json).ok()).map(Cow::Borrowed),
        kind if oid::TEXTS.contains(&kind) => return str::from_utf8(value).ok().map(Cow::Borrowed),
        _ => None,
    };
    owned.map(Cow::Owned)
}

fn exact<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.try_into().ok()
}

/// A float from its shortest form with an exponent; `digits` is from where on the exponent is written.
fn float(value: f64, shortest: &str, digits: i32) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..digits).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(|c| *c != '.').collect();
    match usize::try_from(exponent) {
        // The point moves to the left, before the first digit.
        Err(_) => {
            let zeros = usize::try_from(-1 - exponent).unwrap_or(0);
            format!("{sign}0.{}{digits}", "0".repeat(zeros))
        }
        Ok(places) => match digits.split_at_checked(places + 1) {
            Some((whole, "")) => format!("{sign}{whole}"),
            Some((whole, fraction)) => format!("{sign}{whole}.{fraction}"),
            None => format!("{sign}{digits:0<width$}", width = places + 1),
        },
    }
}

/// `numeric`: groups of four decimal digits, the first of them at 10000^weight.
fn numeric(mut value: &[u8]) -> Option<String> {
    let count = i16::from_be_bytes(take(&mut value).ok()?);
    let weight = i16::from_be_bytes(take(&mut value).ok()?);
    let sign = u16::from_be_bytes(take(&mut value).ok()?);
    let scale = usize::from(u16::from_be_bytes(take(&mut value).ok()?));
    let groups = value.as_chunks::<2>().0;
    if !value.len().is_multiple_of(2) || i16::try_from(groups.len()).ok()? != count {
        return None;
    }
    let sign = match sign {
        0 => "",
        0x4000 => "-",
        0xc000 => return Some("NaN".into()),
        0xd000 => return Some("Infinity".into()),
        0xf000 => return Some("-Infinity".into()),
        _ => return None,
    };
    let digits: Vec<u16> = groups.iter().map(|group| u16::from_be_bytes(*group)).collect();
    if digits.iter().any(|group| *group > 9999) {
        return None;
    }
    // Groups before the point; those that are not stored are zero.
    let before = usize::try_from(i32::from(weight) + 1).unwrap_or(0);
    let skipped = usize::try_from(-1 - i32::from(weight)).unwrap_or(0);
    if (4 * before + scale).saturating_sub(4 * digits.len()) > ZEROS {
        return None;
    }
    let group = |at: usize| digits.get(at).copied().unwrap_or(0);
    let mut out = String::from(sign);
    if before == 0 {
        out.push('0');
    }
    for at in 0..before {
        // A `String` takes all that is written to it.
        let _ = if at == 0 { write!(out, "{}", group(at)) } else { write!(out, "{:04}", group(at)) };
    }
    if scale > 0 {
        let mut fraction = "0000".repeat(skipped.min(scale.div_ceil(4)));
        for at in before..before + scale.div_ceil(4) {
            let _ = write!(fraction, "{:04}", group(at));
        }
        out.push('.');
        out.push_str(fraction.get(..scale)?);
    }
    Some(out)
}

/// Days since 2000 as a date.
fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".into(),
        i32::MIN => "-infinity".into(),
        days => {
            let (date, era) = calendar(days.into());
            format!("{date}{era}")
        }
    }
}

/// Microseconds since 2000 as a date and a time.
fn timestamp(micros: i64, zone: &str) -> String {
    match micros {
        i64::MAX => "infinity".into(),
        i64::MIN => "-infinity".into(),
        micros => {
            let (date, era) = calendar(micros.div_euclid(DAY));
            format!("{date} {}{zone}{era}", clock(micros.rem_euclid(DAY)))
        }
    }
}

/// The date so many days after 2000-01-01 in the Gregorian calendar, and its era. A year is taken to begin in March, so
/// that the day that comes every four years is its last: then months have 153 days in five.
fn calendar(days: i64) -> (String, &'static str) {
    const CENTURIES: i64 = 146_097;
    // Days since 0000-03-01, in whole and within 400 years.
    let days = days + DAYS_TO_2000 + 719_468;
    let day = days.rem_euclid(CENTURIES);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + 400 * days.div_euclid(CENTURIES) + i64::from(month <= 2);
    // There is no year zero.
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

/// Microseconds as hours, minutes and seconds.
fn clock(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let (seconds, fraction) = (micros / SECOND.unsigned_abs(), micros % SECOND.unsigned_abs());
    let mut out = format!("{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
    out
}

/// `timetz`: a time, and seconds that its zone is west of Greenwich.
fn time_with_zone(mut value: &[u8]) -> Option<String> {
    let time = clock(i64::from_be_bytes(take(&mut value).ok()?));
    let west = i64::from(i32::from_be_bytes(exact(value)?));
    let (sign, seconds) = (if west > 0 { '-' } else { '+' }, west.abs());
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(match (minutes, seconds) {
        (0, 0) => format!("{time}{sign}{hours:02}"),
        (_, 0) => format!("{time}{sign}{hours:02}:{minutes:02}"),
        (_, _) => format!("{time}{sign}{hours:02}:{minutes:02}:{seconds:02}"),
    })
}

/// `interval`: a time, days and months, each with a sign of its own.
fn interval(mut value: &[u8]) -> Option<String> {
    let micros = i64::from_be_bytes(take(&mut value).ok()?);
    let days = i32::from_be_bytes(take(&mut value).ok()?);
    let months = i32::from_be_bytes(exact(value)?);
    let mut parts = Vec::new();
    let mut below_zero = false;
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count != 0 {
            let plus = if below_zero && count > 0 { "+" } else { "" };
            let plural = if count == 1 { "" } else { "s" };
            parts.push(format!("{plus}{count} {unit}{plural}"));
            below_zero = count < 0;
        }
    }
    if micros != 0 || parts.is_empty() {
        let plus = if below_zero && micros > 0 { "+" } else { "" };
        parts.push(format!("{plus}{}", clock(micros)));
    }
    Some(parts.join(" "))
}

fn uuid(value: &[u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (at, byte) in value.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// `inet` and `cidr`: only the first leaves out the length of a whole address.
fn address(kind: u32, value: &[u8]) -> Option<String> {
    let address = postgres_protocol::types::inet_from_sql(value).ok()?;
    let whole = if address.addr().is_ipv4() { 32 } else { 128 };
    if kind == oid::INET && address.netmask() == whole {
        return Some(address.addr().to_string());
    }
    Some(format!("{}/{}", address.addr(), address.netmask()))
}

/// An array as its literal, with how many elements were left out of one that is too long to show.
fn array(mut value: &[u8]) -> Option<(String, usize)> {
    let dimensions = usize::try_from(i32::from_be_bytes(take(&mut value).ok()?)).ok()?;
    // Whether there are nulls.
    take::<4>(&mut value).ok()?;
    let kind = u32::from_be_bytes(take(&mut value).ok()?);
    if dimensions > DIMENSIONS {
        return None;
    }
    let (mut sizes, mut bounds, mut total) = (Vec::new(), String::new(), usize::from(dimensions > 0));
    for _ in 0..dimensions {
        let size = i32::from_be_bytes(take(&mut value).ok()?);
        let lower = i32::from_be_bytes(take(&mut value).ok()?);
        let _ = write!(bounds, "[{lower}:{}]", i64::from(lower) + i64::from(size) - 1);
        sizes.push((usize::try_from(size).ok()?, lower));
        total = total.checked_mul(usize::try_from(size).ok()?)?;
    }
    // Each element has at least its length.
    if total > value.len() / 4 {
        return None;
    }
    let mut out = String::new();
    if sizes.iter().any(|(_, lower)| *lower != 1) {
        let _ = write!(out, "{bounds}=");
    }
    if total == 0 {
        out.push_str("{}");
    }
    for at in 0..total {
        if out.len() > VALUE {
            return Some((out, total - at));
        }
        // How many of the innermost dimensions begin, and end, at this element.
        let edges = |at: usize| {
            let whole = sizes.iter().rev().scan(1, |inner, (size, _)| {
                *inner *= size;
                Some(*inner)
            });
            whole.take_while(|inner| at.is_multiple_of(*inner)).count()
        };
        if at > 0 {
            out.push(',');
        }
        out.push_str(&"{".repeat(edges(at)));
        element(kind, &mut value, &mut out)?;
        out.push_str(&"}".repeat(edges(at + 1)));
    }
    value.is_empty().then_some((out, 0))
}

fn element(kind: u32, from: &mut &[u8], out: &mut String) -> Option<()> {
    let Ok(len) = usize::try_from(i32::from_be_bytes(take(from).ok()?)) else {
        out.push_str("NULL");
        return Some(());
    };
    let (value, rest) = from.split_at_checked(len)?;
    *from = rest;
    let text = match kind {
        oid::BYTEA => Cow::Owned(hex(value, usize::MAX)),
        kind => text(kind, value)?,
    };
    let special = |c: char| c.is_whitespace() || matches!(c, '{' | '}' | ',' | '"' | '\\');
    if text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains(special) {
        let _ = write!(out, "\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    } else {
        out.push_str(&text);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(digits: &str) -> Vec<u8> {
        digits.as_bytes().chunks(2).map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn values_are_shown_as_the_server_writes_them() {
        let mut values = 0;
        for row in include_str!("testdata/values.txt").lines().filter(|row| !row.starts_with('#')) {
            let mut fields = row.splitn(3, '|');
            let mut field = || fields.next().unwrap();
            let (kind, value, text) = (field().parse().unwrap(), bytes_of(field()), field());
            let expected = if kind == oid::BYTEA { text.to_owned() } else { line(text, VALUE) };
            assert_eq!(binary(kind, &value), expected, "{row}");
            // Whatever is missing or too much: no other value, but bytes.
            if !oid::TEXTS.contains(&kind) && kind != oid::BYTEA && kind != oid::JSONB {
                for wrong in [&value[..value.len() - 1], &[&value, &b"\0"[..]].concat()] {
                    assert_eq!(binary(kind, wrong), hex(wrong, VALUE), "{row}");
                }
            }
            values += 1;
        }
        assert!(values > 100, "{values} values");
    }

    #[test]
    fn a_long_array_is_cut_and_counted() {
        let mut value = bytes_of("000000010000000000000017");
        value.extend_from_slice(&1_000_000u32.to_be_bytes());
        value.extend_from_slice(&1u32.to_be_bytes());
        value.extend(bytes_of("0000000400000007").repeat(1_000_000));
        let shown = binary(1007, &value);
        assert!(shown.starts_with("{7,7,7,7") && shown.ends_with("⟦… 999899 more elements⟧"), "{shown}");
    }

    #[test]
    fn a_few_bytes_do_not_become_a_long_text() {
        for value in ["00017fff000000000001", "00018000000007d00001", "000100000000ffff0001"] {
            assert_eq!(binary(oid::NUMERIC, &bytes_of(value)), format!("\\x{value}"));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_shown_and_none_panics(kind in 0usize..60, value in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let kinds = [oid::NUMBERS.as_slice(), &oid::TEXTS, &oid::ARRAYS, &[16, 17, 650, 869, 1082, 1083, 1114, 1184, 1186, 1266, 2950, 3802]].concat();
            let shown = binary(kinds[kind % kinds.len()], &value);
            proptest::prop_assert!(shown.chars().all(|c| !c.is_control()));
        }

        #[test]
        fn any_array_is_shown_and_none_panics(dimensions in proptest::collection::vec((0u32..4, proptest::num::i32::ANY), 0..7), kind in 0usize..3, rest in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let mut value = u32::try_from(dimensions.len()).unwrap().to_be_bytes().to_vec();
            value.extend_from_slice(&[0; 4]);
            value.extend_from_slice(&[oid::INT2, oid::NUMERIC, 25][kind].to_be_bytes());
            for (size, lower) in dimensions {
                value.extend_from_slice(&size.to_be_bytes());
                value.extend_from_slice(&lower.to_be_bytes());
            }
            value.extend_from_slice(&rest);
            proptest::prop_assert!(binary(1007, &value).chars().all(|c| !c.is_control()));
        }
    }
}
