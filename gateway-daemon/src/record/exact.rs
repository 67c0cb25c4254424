//! How values look in exact JSON: digests as hex, bytes as text where they are UTF-8 and as base64 where not, times in
//! microseconds. Nothing is lost: what was written so reads back as it was.

use serde::{Deserialize, Serialize};

/// Bytes in JSON: `{"text": "…"}` or `{"base64": "…"}`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Exact<'a> {
    #[serde(borrow)]
    Text(std::borrow::Cow<'a, str>),
    #[serde(borrow)]
    Base64(std::borrow::Cow<'a, str>),
}

impl<'a> From<&'a [u8]> for Exact<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        use base64::{Engine, prelude::BASE64_STANDARD};
        match str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.into()),
            Err(_) => Self::Base64(BASE64_STANDARD.encode(bytes).into()),
        }
    }
}

impl TryFrom<Exact<'_>> for Vec<u8> {
    type Error = base64::DecodeError;

    fn try_from(exact: Exact<'_>) -> Result<Self, Self::Error> {
        use base64::{Engine, prelude::BASE64_STANDARD};
        match exact {
            Exact::Text(text) => Ok(text.into_owned().into_bytes()),
            Exact::Base64(text) => BASE64_STANDARD.decode(text.as_bytes()),
        }
    }
}

pub(super) mod bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use super::Exact;

    pub(in crate::record) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        Exact::from(bytes).serialize(to)
    }

    pub(in crate::record) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Exact::deserialize(from)?.try_into().map_err(D::Error::custom)
    }
}

/// Statement parameters, in JSON and in CBOR (byte strings and nulls, not arrays of numbers).
pub(super) mod parameters {
    use minicbor::{Decoder, Encoder, bytes::ByteSlice, decode::Error as DecodeError, encode::Error as EncodeError};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Exact;

    type Parameters = Vec<Option<Vec<u8>>>;

    pub(in crate::record) fn serialize<S: Serializer>(values: &[Option<Vec<u8>>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(|value| value.as_deref().map(Exact::from)))
    }

    pub(in crate::record) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Parameters, D::Error> {
        let values = Vec::<Option<Exact<'_>>>::deserialize(from)?;
        values.into_iter().map(|value| value.map(Vec::try_from).transpose().map_err(D::Error::custom)).collect()
    }

    pub(in crate::record) fn encode<C, W: minicbor::encode::Write>(
        values: &Parameters,
        to: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        to.array(u64::try_from(values.len()).unwrap_or(u64::MAX))?;
        for value in values {
            match value {
                Some(bytes) => to.bytes(bytes)?,
                None => to.null()?,
            };
        }
        Ok(())
    }

    pub(in crate::record) fn decode<C>(from: &mut Decoder<'_>, _: &mut C) -> Result<Parameters, DecodeError> {
        from.array_iter::<Option<&ByteSlice>>()?.map(|value| Ok(value?.map(|bytes| bytes.to_vec()))).collect()
    }
}

/// Addresses in CBOR: IP, port, and for IPv6 flow label and scope, which minicbor's own form leaves out.
pub(super) mod address {
    use std::net::{IpAddr, SocketAddr, SocketAddrV6};

    use minicbor::{Decoder, Encoder, decode::Error as DecodeError, encode::Error as EncodeError};

    pub(in crate::record) fn encode<C, W: minicbor::encode::Write>(
        address: &SocketAddr,
        to: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match address {
            SocketAddr::V4(v4) => to.array(2)?.encode(IpAddr::from(*v4.ip()))?.u16(v4.port())?,
            SocketAddr::V6(v6) => {
                to.array(4)?.encode(IpAddr::from(*v6.ip()))?.u16(v6.port())?.u32(v6.flowinfo())?.u32(v6.scope_id())?
            }
        };
        Ok(())
    }

    pub(in crate::record) fn decode<C>(from: &mut Decoder<'_>, _: &mut C) -> Result<SocketAddr, DecodeError> {
        match (from.array()?, from.decode()?, from.u16()?) {
            (Some(2), IpAddr::V4(ip), port) => Ok((ip, port).into()),
            (Some(4), IpAddr::V6(ip), port) => Ok(SocketAddrV6::new(ip, port, from.u32()?, from.u32()?).into()),
            _ => Err(DecodeError::message("an address has two or four parts")),
        }
    }
}

/// See [`address`].
pub(super) mod address_option {
    use std::net::SocketAddr;

    use minicbor::{Decoder, Encoder, data::Type, decode::Error as DecodeError, encode::Error as EncodeError};

    use super::address;

    pub(in crate::record) fn encode<C, W: minicbor::encode::Write>(
        value: &Option<SocketAddr>,
        to: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match value {
            Some(value) => address::encode(value, to, context),
            None => to.null().map(drop),
        }
    }

    pub(in crate::record) fn decode<C>(
        from: &mut Decoder<'_>,
        context: &mut C,
    ) -> Result<Option<SocketAddr>, DecodeError> {
        if from.datatype()? == Type::Null {
            return from.null().map(|()| None);
        }
        address::decode(from, context).map(Some)
    }
}

pub(super) mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(in crate::record) fn serialize<S: Serializer>(digest: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write;
        let mut text = String::with_capacity(64);
        for byte in digest {
            // A `String` takes all that is written to it.
            let _ = write!(text, "{byte:02x}");
        }
        to.serialize_str(&text)
    }

    pub(in crate::record) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        let mut digest = [0; 32];
        let pairs = text.as_bytes().chunks_exact(2);
        if text.len() != 64 {
            return Err(D::Error::custom("a digest has 64 hex digits"));
        }
        for (byte, pair) in digest.iter_mut().zip(pairs) {
            let pair = str::from_utf8(pair).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(pair, 16).map_err(D::Error::custom)?;
        }
        Ok(digest)
    }
}

pub(super) mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::record) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }

    pub(in crate::record) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_micros)
    }
}
