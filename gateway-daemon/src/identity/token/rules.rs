//! What an operator says about an issuer's tokens, checked.

use std::{fmt, sync::Arc, time::Duration};

/// How far an issuer's clock may be ahead of this host's: for `nbf` and `iat`. `exp` has none: an identity ends when
/// its token says so.
const LEEWAY: Duration = Duration::from_secs(60);
/// See [`TokenSettings::max_lifetime`].
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// More leeway than this would undo `nbf` and `iat`.
const MAX_LEEWAY: Duration = Duration::from_secs(300);

/// A signature algorithm (RFC 7518 section 3.1, RFC 8037). There is no symmetric one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Rs256, Self::Ps256, Self::Es256, Self::Es384, Self::EdDsa];

    /// By its name in a header, which is compared with case (RFC 7515 section 4.1.1).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Its name in a header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }

    pub(super) const fn jsonwebtoken(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Ps256 => jsonwebtoken::Algorithm::PS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::Es384 => jsonwebtoken::Algorithm::ES384,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an operator says about an issuer's tokens.
#[derive(Debug, Clone)]
pub struct TokenSettings {
    /// The issuer's configured name; its groups are called `NAME/GROUP`.
    pub name: String,
    /// The URL that `iss` must equal, byte for byte.
    pub issuer: String,
    /// The audience that `aud` must name.
    pub audience: String,
    /// The algorithms that its tokens may be signed with.
    pub algorithms: Vec<Algorithm>,
    /// JSON pointers (RFC 6901) to groups in the claims: `/groups`, `/realm_access/roles`. What one leads to may be an array of
    /// strings, a string of names separated by spaces, or an object whose keys are names. One that leads nowhere
    /// gives none.
    pub groups: Vec<String>,
    /// How far the issuer's clock may be ahead: for `nbf` and `iat`. At most five minutes.
    pub leeway: Duration,
    /// How far ahead `exp` may lie, and behind `iat` where there is one. A stolen token works as long as it lives.
    pub max_lifetime: Duration,
    /// How long ago `iat` may lie; with it `iat` is required. `None`: as long as the token lives.
    pub max_age: Option<Duration>,
    /// The `typ`s that a header may have; one of them must be there. When empty, `JWT`, `at+jwt` or none at all.
    pub types: Vec<String>,
    /// The `azp`s (OpenID Connect Core section 2) that a token may have; one must be there. When empty, any or none.
    pub authorized_parties: Vec<String>,
}

impl TokenSettings {
    /// The defaults: RS256, groups in `/groups`, a minute of leeway, a day of life.
    pub fn new(name: &str, issuer: &str, audience: &str) -> Self {
        Self {
            name: name.to_owned(),
            issuer: issuer.to_owned(),
            audience: audience.to_owned(),
            algorithms: vec![Algorithm::Rs256],
            groups: vec!["/groups".to_owned()],
            leeway: LEEWAY,
            max_lifetime: MAX_LIFETIME,
            max_age: None,
            types: Vec::new(),
            authorized_parties: Vec::new(),
        }
    }
}

/// What is wrong with [`TokenSettings`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// A group `a/b/c` must have one reading.
    #[error("the issuer's name `{name}` is not made of letters, digits, `-`, `_` and `.`")]
    Name {
        /// As given.
        name: String,
    },
    /// Nothing to compare with.
    #[error("`{key}` is empty")]
    Empty {
        /// `issuer` or `audience`.
        key: &'static str,
    },
    /// No token would ever pass.
    #[error("`algorithms` is empty")]
    NoAlgorithm,
    /// Not a JSON pointer.
    #[error(
        "`{pointer}` in `groups` is not a JSON pointer: it must begin with `/`, and `~` stands only in `~0` and `~1`"
    )]
    Pointer {
        /// As given.
        pointer: String,
    },
    /// A value that no token could have.
    #[error("`{key}` has an empty value")]
    EmptyValue {
        /// `types` or `authorized_parties`.
        key: &'static str,
    },
    /// No token would ever pass.
    #[error("`{key}` is zero, so that no token would ever pass")]
    Zero {
        /// `max_lifetime` or `max_age`.
        key: &'static str,
    },
    /// Too much leeway.
    #[error("`leeway` is over {limit_seconds} seconds")]
    Leeway {
        /// The limit.
        limit_seconds: u64,
    },
}

/// [`TokenSettings`] that hold.
#[derive(Debug, Clone)]
pub struct TokenRules {
    pub(super) name: Arc<str>,
    pub(super) issuer: Arc<str>,
    pub(super) audience: Arc<str>,
    algorithms: Vec<Algorithm>,
    pub(super) groups: Vec<Arc<str>>,
    pub(super) leeway: Duration,
    pub(super) max_lifetime: Duration,
    pub(super) max_age: Option<Duration>,
    pub(super) types: Vec<Box<str>>,
    pub(super) authorized_parties: Vec<Box<str>>,
}

impl TokenRules {
    /// Checks the settings.
    ///
    /// # Errors
    /// The first that cannot be meant.
    pub fn new(settings: TokenSettings) -> Result<Self, RulesError> {
        let TokenSettings { name, issuer, audience, algorithms, groups, leeway, .. } = settings;
        let TokenSettings { max_lifetime, max_age, types, authorized_parties, .. } = settings;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(RulesError::Name { name });
        }
        for (key, value) in [("issuer", &issuer), ("audience", &audience)] {
            if value.is_empty() {
                return Err(RulesError::Empty { key });
            }
        }
        if algorithms.is_empty() {
            return Err(RulesError::NoAlgorithm);
        }
        if let Some(pointer) = groups.iter().find(|pointer| !is_pointer(pointer)) {
            return Err(RulesError::Pointer { pointer: pointer.clone() });
        }
        for (key, values) in [("types", &types), ("authorized_parties", &authorized_parties)] {
            if values.iter().any(String::is_empty) {
                return Err(RulesError::EmptyValue { key });
            }
        }
        for (key, limit) in [("max_lifetime", Some(max_lifetime)), ("max_age", max_age)] {
            if limit.is_some_and(|limit| limit.is_zero()) {
                return Err(RulesError::Zero { key });
            }
        }
        if leeway > MAX_LEEWAY {
            return Err(RulesError::Leeway { limit_seconds: MAX_LEEWAY.as_secs() });
        }
        Ok(Self {
            name: name.into(),
            issuer: issuer.into(),
            audience: audience.into(),
            algorithms,
            groups: groups.into_iter().map(Into::into).collect(),
            leeway,
            max_lifetime,
            max_age,
            types: types.into_iter().map(Into::into).collect(),
            authorized_parties: authorized_parties.into_iter().map(Into::into).collect(),
        })
    }

    /// The issuer's configured name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL that `iss` must equal.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) fn allows(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

/// RFC 6901 section 3. The empty pointer, which means all claims, is left out.
fn is_pointer(text: &str) -> bool {
    let mut escapes = text.split('~').skip(1);
    text.starts_with('/') && escapes.all(|rest| rest.starts_with(['0', '1']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_be_meant_are_refused() {
        let good = || TokenSettings::new("corp", "https://idp.example", "weir");
        assert!(TokenRules::new(good()).is_ok());
        let bad = [
            (
                TokenSettings { name: "a/b".into(), ..good() },
                "the issuer's name `a/b` is not made of letters, digits, `-`, `_` and `.`",
            ),
            (
                TokenSettings { name: String::new(), ..good() },
                "the issuer's name `` is not made of letters, digits, `-`, `_` and `.`",
            ),
            (TokenSettings { issuer: String::new(), ..good() }, "`issuer` is empty"),
            (TokenSettings { audience: String::new(), ..good() }, "`audience` is empty"),
            (TokenSettings { algorithms: Vec::new(), ..good() }, "`algorithms` is empty"),
            (
                TokenSettings { groups: vec!["/groups".into(), "roles".into()], ..good() },
                "`roles` in `groups` is not a JSON pointer: it must begin with `/`, and `~` stands only in `~0` and `~1`",
            ),
            (
                TokenSettings { groups: vec!["/a~2".into()], ..good() },
                "`/a~2` in `groups` is not a JSON pointer: it must begin with `/`, and `~` stands only in `~0` and `~1`",
            ),
            (TokenSettings { types: vec![String::new()], ..good() }, "`types` has an empty value"),
            (
                TokenSettings { authorized_parties: vec!["a".into(), String::new()], ..good() },
                "`authorized_parties` has an empty value",
            ),
            (
                TokenSettings { max_age: Some(Duration::ZERO), ..good() },
                "`max_age` is zero, so that no token would ever pass",
            ),
            (
                TokenSettings { max_lifetime: Duration::ZERO, ..good() },
                "`max_lifetime` is zero, so that no token would ever pass",
            ),
            (TokenSettings { leeway: Duration::from_secs(301), ..good() }, "`leeway` is over 300 seconds"),
        ];
        for (settings, message) in bad {
            assert_eq!(TokenRules::new(settings).unwrap_err().to_string(), message);
        }
    }
}
