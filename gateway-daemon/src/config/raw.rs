//! The configuration as it is written: every key that exists, nothing checked yet. An unknown key is an error of the
//! parser, which names its line.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

use crate::secret::SecretRef;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    #[serde(default)]
    pub(super) daemon: Daemon,
    #[serde(default)]
    pub(super) store: Store,
    #[serde(default)]
    pub(super) issuer: Vec<Spanned<Issuer>>,
    #[serde(default)]
    pub(super) agent: Vec<Spanned<Agent>>,
    #[serde(default)]
    pub(super) connection: Vec<Spanned<Connection>>,
    #[serde(default)]
    pub(super) protect: Vec<Spanned<Protect>>,
    #[serde(default)]
    pub(super) allow: Vec<Spanned<Allow>>,
    #[serde(default)]
    pub(super) limits: Limits,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Daemon {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) runtime_dir: Option<PathBuf>,
    pub(super) homes: Option<PathBuf>,
    pub(super) scope: Option<String>,
    pub(super) cgroup: Option<String>,
    pub(super) pins: Option<PathBuf>,
    pub(super) listener_port: Option<u16>,
    pub(super) guard: Option<String>,
    pub(super) policies: Option<PathBuf>,
    pub(super) workers: Option<usize>,
    pub(super) auditors: Option<Vec<Spanned<String>>>,
    pub(super) refusal_hint: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Store {
    pub(super) dir: Option<PathBuf>,
    pub(super) window_bytes: Option<u64>,
    pub(super) answer_bytes: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Issuer {
    pub(super) name: String,
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) algorithms: Vec<String>,
    #[serde(default)]
    pub(super) groups: Vec<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) jwks_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) types: Vec<String>,
    #[serde(default)]
    pub(super) authorized_parties: Vec<String>,
    pub(super) max_lifetime: Option<String>,
    pub(super) max_age: Option<String>,
    pub(super) leeway: Option<String>,
    pub(super) stale: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Agent {
    pub(super) name: String,
    pub(super) user: Option<String>,
    pub(super) uid_pool: Option<String>,
    pub(super) issuer: String,
    pub(super) subject: Option<String>,
    #[serde(default)]
    pub(super) starters: Vec<String>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) egress: Option<String>,
    #[serde(default)]
    pub(super) egress_allow: Vec<EgressAllow>,
    #[serde(default)]
    pub(super) limits: AgentLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EgressAllow {
    pub(super) address: String,
    pub(super) reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Connection {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) host: Option<String>,
    #[serde(default)]
    pub(super) hosts: Vec<String>,
    pub(super) target_session_attrs: Option<String>,
    pub(super) port: Option<u16>,
    #[serde(default)]
    pub(super) targets: Vec<String>,
    pub(super) database: Option<String>,
    pub(super) user: String,
    #[serde(default)]
    pub(super) accept_users: Vec<String>,
    #[serde(default, deserialize_with = "secret_ref")]
    pub(super) password: Option<SecretRef>,
    pub(super) tls: Option<String>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) client_cert_file: Option<PathBuf>,
    pub(super) client_key_file: Option<PathBuf>,
    pub(super) channel_binding: Option<String>,
    #[serde(default)]
    pub(super) identity_parameters: bool,
    pub(super) unix_sockets: Option<Vec<PathBuf>>,
    pub(super) linger: Option<String>,
    pub(super) mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Protect {
    pub(super) address: String,
    pub(super) reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Allow {
    pub(super) uid: Option<u32>,
    pub(super) cgroup: Option<String>,
    pub(super) reason: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) message_bytes: Option<usize>,
    pub(super) server_message_bytes: Option<usize>,
    pub(super) statement_bytes: Option<usize>,
    pub(super) statement_nesting: Option<usize>,
    pub(super) statement_tokens: Option<usize>,
    pub(super) startup: Option<String>,
    pub(super) idle: Option<String>,
    pub(super) connections: Option<usize>,
    pub(super) pipeline: Option<usize>,
    pub(super) prepared_statements: Option<usize>,
    #[serde(default)]
    pub(super) agent: AgentLimits,
}

/// What stands in `[limits.agent]` for all, and in an agent's `limits` for one.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct AgentLimits {
    pub(super) connections: Option<u64>,
    pub(super) connects_per_second: Option<u64>,
    pub(super) statements_per_second: Option<u64>,
    pub(super) rows_per_hour: Option<u64>,
    pub(super) bytes_per_hour: Option<u64>,
    pub(super) record_bytes_per_hour: Option<u64>,
    pub(super) store_share: Option<u64>,
}

/// What serde says of a value that is no reference quotes the value, which may be the secret itself.
fn secret_ref<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretRef>, D::Error> {
    SecretRef::deserialize(from).map(Some).map_err(|error| {
        if error.to_string().contains("more than 1 element") {
            return D::Error::custom(
                "names more than one place; keep one of `file`, `env`, `credential` and `command`",
            );
        }
        D::Error::custom(
            "says where the secret lies, never what it is: write { file = \"/path\" }, { env = \"NAME\" }, \
             { credential = \"name\" } or { command = [\"/path\"] }",
        )
    })
}
