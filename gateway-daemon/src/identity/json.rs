//! JSON as a token must have it: an object at the top, no key twice at any level, nesting bounded.
//!
//! RFC 7519 section 4 lets a reader take the last of two equal names; two readers that choose differently can be
//! made to see two different tokens, so a name that stands twice (after its escapes are read) is refused.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Objects and arrays inside each other, the outermost counted.
pub(crate) const MAX_DEPTH: usize = 16;

/// Why a text is not taken. None of them repeats any of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or something behind it.
    #[error("is not JSON")]
    Syntax,
    /// JSON, but no object.
    #[error("is not a JSON object")]
    NotAnObject,
    /// A name stands twice in one object.
    #[error("names a key twice")]
    DuplicateKey,
    /// Too deep.
    #[error("is nested deeper than {limit} levels")]
    TooDeep {
        /// [`MAX_DEPTH`].
        limit: usize,
    },
}

/// Reads one object that fills all of `text`.
pub(crate) fn parse_object(text: &[u8]) -> Result<Map<String, Value>, JsonError> {
    // serde's errors are text; which rule was broken is noted beside them.
    let fault = Cell::new(JsonError::Syntax);
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { fault: &fault, left: MAX_DEPTH }.deserialize(&mut reader).map_err(|_| fault.get())?;
    reader.end().map_err(|_| JsonError::Syntax)?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(JsonError::NotAnObject),
    }
}

/// Reads a value with the rules of this module.
#[derive(Clone, Copy)]
struct Strict<'a> {
    fault: &'a Cell<JsonError>,
    /// Levels that may still be opened.
    left: usize,
}

impl Strict<'_> {
    fn fail<E: serde::de::Error>(&self, fault: JsonError) -> E {
        self.fault.set(fault);
        E::custom("refused")
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        match self.left.checked_sub(1) {
            Some(left) => Ok(Self { left, ..self }),
            None => Err(self.fail(JsonError::TooDeep { limit: MAX_DEPTH })),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(self.fail(JsonError::DuplicateKey));
            }
            object.insert(key, entries.next_value_seed(inner)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_stands_twice_is_refused_at_every_level_and_behind_escapes() {
        for text in [
            r#"{"iss":"a","iss":"a"}"#,
            r#"{"iss":"a","\u0069ss":"b"}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":[[{"b":1,"c":2,"b":3}]]}"#,
        ] {
            assert_eq!(parse_object(text.as_bytes()), Err(JsonError::DuplicateKey), "{text}");
        }
        assert!(parse_object(br#"{"a":{"b":1},"b":[{"b":2},{"b":3}]}"#).is_ok());
    }

    #[test]
    fn nesting_ends_at_its_limit_and_not_before() {
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
        assert!(parse_object(nested(MAX_DEPTH).as_bytes()).is_ok());
        let too_deep = Err(JsonError::TooDeep { limit: MAX_DEPTH });
        assert_eq!(parse_object(nested(MAX_DEPTH + 1).as_bytes()), too_deep);
        assert_eq!(parse_object(nested(100_000).as_bytes()), too_deep);
    }

    #[test]
    fn only_one_whole_object_is_taken() {
        for text in
            ["", "{", "{}{}", "{} x", "{a:1}", "{\"a\":1e999}", "{\"a\":NaN}", "{\"a\":\"\\ud800\"}", "{\"a\":1,}"]
        {
            assert_eq!(parse_object(text.as_bytes()), Err(JsonError::Syntax), "{text}");
        }
        assert_eq!(parse_object(b"\xef\xbb\xbf{}"), Err(JsonError::Syntax), "a byte order mark");
        assert_eq!(parse_object(b"{\"a\":\"\xff\"}"), Err(JsonError::Syntax), "not UTF-8");
        for text in ["[]", "\"x\"", "1", "null"] {
            assert_eq!(parse_object(text.as_bytes()), Err(JsonError::NotAnObject), "{text}");
        }
    }
}
