//! Why a token is refused. No message repeats any part of a token: it may be a credential that still works.

use std::{fmt, sync::Arc};

use super::{Algorithm, key::KeyFault};
use crate::identity::{issuer::IssuerError, json::JsonError};

/// A part of a token's compact form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The JOSE header.
    Header,
    /// The claims.
    Payload,
    /// The signature.
    Signature,
}

/// Why a token is refused: one variant a rule, in the order in which they are tried.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenError {
    /// Nothing there.
    #[error("the token is empty")]
    Empty,
    /// Over the limit.
    #[error("the token is longer than {limit} bytes")]
    TooLong {
        /// [`super::MAX_TOKEN_LEN`].
        limit: usize,
    },
    /// Five parts: a JWE.
    #[error("the token is encrypted (JWE); a signed one (JWS) is wanted")]
    Encrypted,
    /// Neither three nor five parts.
    #[error("the token has {found} parts separated by dots instead of 3")]
    Parts {
        /// How many.
        found: usize,
    },
    /// A part without a byte.
    #[error("the token's {part} is empty")]
    EmptyPart {
        /// Which.
        part: Part,
    },
    /// Base64 with padding.
    #[error("the token's {part} has base64 padding (RFC 7515 section 2 has none)")]
    Padding {
        /// Which.
        part: Part,
    },
    /// A character that base64url has not, white space included.
    #[error("the token's {part} has a character that base64url does not have")]
    Character {
        /// Which.
        part: Part,
    },
    /// Base64 that another text would decode to as well.
    #[error("the token's {part} is not canonical base64url")]
    NotCanonical {
        /// Which.
        part: Part,
    },
    /// See [`JsonError`].
    #[error("the token's {part} {fault}")]
    Json {
        /// Which.
        part: Part,
        /// What is wrong with it.
        fault: JsonError,
    },
    /// A header field that changes how the rest is read, or brings its own key.
    #[error("the token's header has `{name}`, which is never accepted")]
    ForbiddenHeader {
        /// The field.
        name: &'static str,
    },
    /// No `alg`, or not a string.
    #[error("the token's header has no `alg`")]
    AlgorithmMissing,
    /// `alg` is `none`.
    #[error("the token is not signed (`alg` is `none`)")]
    Unsigned,
    /// HS256 and its kin.
    #[error("the token's `alg` is symmetric (HMAC): who can check such a token can make one")]
    Symmetric,
    /// An algorithm that Weir does not know.
    #[error("the token's `alg` is none that Weir knows")]
    AlgorithmUnknown,
    /// Known, but the issuer's configuration leaves it out.
    #[error("the token is signed with {algorithm}, which is not in `algorithms` of this issuer")]
    AlgorithmNotAllowed {
        /// The token's.
        algorithm: Algorithm,
    },
    /// `typ` is something else than an access token or a plain JWT.
    #[error("the token's `typ` is neither `JWT` nor `at+jwt`")]
    Type,
    /// `typ` is none that the issuer's configuration names, or is not there.
    #[error("the token's `typ` is none of `{expected}` (`types` of this issuer)")]
    OtherType {
        /// As configured.
        expected: Arc<str>,
    },
    /// No `kid`.
    #[error("the token's header has no `kid`")]
    KeyIdMissing,
    /// `kid` is no string, empty, or too long.
    #[error("the token's `kid` is not a string of 1 to {limit} bytes")]
    KeyIdMalformed {
        /// [`super::MAX_KEY_ID_LEN`].
        limit: usize,
    },
    /// The keys of the issuer cannot be had.
    #[error("the issuer's keys cannot be had: {0}")]
    Keys(#[source] Arc<IssuerError>),
    /// The issuer has no such key.
    #[error("the issuer has no key with the token's `kid`")]
    KeyUnknown,
    /// The issuer has the key, but it is not one to check this signature with.
    #[error("the issuer's key with the token's `kid` cannot be used: {fault}")]
    KeyUnfit {
        /// Why.
        fault: KeyFault,
    },
    /// A signature of a length that the key cannot have made.
    #[error("the token's signature has {found} bytes instead of {expected}")]
    SignatureLength {
        /// What the key makes.
        expected: usize,
        /// What the token has.
        found: usize,
    },
    /// The signature is not the key's over this header and payload.
    #[error("the token's signature is wrong")]
    Signature,
    /// A claim that must be there and is not.
    #[error("the token has no `{claim}`")]
    Missing {
        /// Its name.
        claim: &'static str,
    },
    /// A claim of the wrong JSON type.
    #[error("the token's `{claim}` is not {wanted}")]
    ClaimType {
        /// Its name.
        claim: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
    /// `iss` is another's.
    #[error("the token's `iss` is not exactly `{expected}`")]
    OtherIssuer {
        /// As configured.
        expected: Arc<str>,
    },
    /// `aud` does not name us.
    #[error("the token's `aud` does not name `{expected}`")]
    OtherAudience {
        /// As configured.
        expected: Arc<str>,
    },
    /// A time before 1970, after 9999, or no number that a clock can show.
    #[error("the token's `{claim}` is not a time between 1970 and 9999")]
    TimeRange {
        /// `exp`, `nbf` or `iat`.
        claim: &'static str,
    },
    /// `exp` has come.
    #[error("the token has expired {ago_seconds} seconds ago")]
    Expired {
        /// How long ago.
        ago_seconds: u64,
    },
    /// `exp` is too far away.
    #[error("the token is valid for longer than {limit_seconds} seconds from now (`max_lifetime` of this issuer)")]
    LifetimeTooLong {
        /// The limit.
        limit_seconds: u64,
    },
    /// `exp` is too far behind `iat`.
    #[error("the token was made to live for longer than {limit_seconds} seconds (`max_lifetime` of this issuer)")]
    MadeToLiveTooLong {
        /// The limit.
        limit_seconds: u64,
    },
    /// `iat` is too long ago.
    #[error("the token was issued {ago_seconds} seconds ago, over {limit_seconds} (`max_age` of this issuer)")]
    TooOld {
        /// How long ago.
        ago_seconds: u64,
        /// The limit.
        limit_seconds: u64,
    },
    /// `azp` is none that the issuer's configuration names.
    #[error("the token's `azp` is none of `{expected}` (`authorized_parties` of this issuer)")]
    OtherParty {
        /// As configured.
        expected: Arc<str>,
    },
    /// `nbf` has not come.
    #[error("the token is not valid for another {in_seconds} seconds (`nbf`)")]
    NotYetValid {
        /// Until then.
        in_seconds: u64,
    },
    /// `iat` has not come.
    #[error("the token was issued {in_seconds} seconds in the future (`iat`): check the clocks")]
    IssuedInFuture {
        /// Until then.
        in_seconds: u64,
    },
    /// A claim that is empty.
    #[error("the token's `{claim}` is empty")]
    ClaimEmpty {
        /// Its name.
        claim: &'static str,
    },
    /// A claim over its limit.
    #[error("the token's `{claim}` is longer than {limit} bytes")]
    ClaimTooLong {
        /// Its name.
        claim: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A claim with control characters, or with invisible ones that change how text is read.
    #[error("the token's `{claim}` has control or invisible characters")]
    ClaimCharacters {
        /// Its name.
        claim: &'static str,
    },
    /// The token is bound to a key (RFC 7800), whose proof Weir cannot ask the agent for.
    #[error("the token is bound to a key (`cnf`), which Weir cannot check")]
    Bound,
    /// The provider left the groups out since they are too many (Microsoft Entra).
    #[error(
        "group overage: the provider left the groups out of the token (`{claim}`); have it send fewer groups, or roles"
    )]
    GroupOverage {
        /// What says so.
        claim: &'static str,
    },
    /// What a pointer leads to cannot be groups.
    #[error("what `{pointer}` leads to in the token is neither an array of strings, a string nor an object")]
    GroupsType {
        /// As configured.
        pointer: Arc<str>,
    },
    /// Too many groups.
    #[error("the token has more than {limit} groups")]
    GroupsTooMany {
        /// [`super::MAX_GROUPS`].
        limit: usize,
    },
    /// A group's name is empty, too long, or has control or invisible characters.
    #[error(
        "a group below `{pointer}` in the token is empty, longer than {limit} bytes, or has control or invisible characters"
    )]
    GroupName {
        /// As configured.
        pointer: Arc<str>,
        /// [`super::MAX_GROUP_LEN`].
        limit: usize,
    },
    /// The agent is configured for another subject.
    #[error("the token's subject is not the one that agent `{agent}` is configured for")]
    OtherSubject {
        /// The agent.
        agent: Arc<str>,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Payload => "payload",
            Self::Signature => "signature",
        })
    }
}
