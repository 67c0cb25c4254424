//! From a declared connection to the servers that its sessions are led to.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;

use super::StartError;
use crate::{
    config::{self, Connection, UpstreamTls as TlsConfig},
    policy::{Lifts, Mode},
    protocol::postgres::{
        catalogs::Catalogs,
        reserved::IdentityParameters,
        serve::{Server, Target},
        upstream::{ChannelBinding, ClientCertificate, Roots, TlsMode, UpstreamSettings, UpstreamTls},
    },
    secret::CredentialSource,
};

/// For all of a login upstream.
const LOGIN_DEADLINE: Duration = Duration::from_secs(15);
/// For the TCP connection to one of several servers.
const TCP_DEADLINE_AMONG_SEVERAL: Duration = Duration::from_secs(4);

/// What a connection's sessions need of it.
pub(super) fn target(connection: &Connection) -> Result<Arc<Target>, StartError> {
    let roots = match &connection.ca_file {
        Some(file) => Roots::File(file.clone()),
        None => Roots::System,
    };
    let mode = match connection.tls {
        TlsConfig::Disable => TlsMode::Disable,
        TlsConfig::Require => TlsMode::Require,
        TlsConfig::VerifyCa => TlsMode::VerifyCa,
        TlsConfig::VerifyFull => TlsMode::VerifyFull,
    };
    let client = connection.client_certificate.clone();
    let client = client.map(|(certificate, key)| Arc::new(ClientCertificate::new(certificate, key)));
    let tls = UpstreamTls::with_client(mode, &roots, client);
    let tls = tls.map_err(|source| StartError::Tls { name: connection.name.clone(), source })?;
    let channel_binding =
        if connection.require_channel_binding { ChannelBinding::Require } else { ChannelBinding::Prefer };
    let upstream = UpstreamSettings {
        connection: connection.name.as_str().into(),
        host: "".into(),
        tls,
        channel_binding,
        user: connection.user.as_str().into(),
        credential: connection.password.clone().map(|password| Arc::new(CredentialSource::new(password))),
        spoken: Arc::default(),
        // Where there is another server, one that is silent is not waited for.
        tcp_deadline: if connection.hosts.len() > 1 { TCP_DEADLINE_AMONG_SEVERAL } else { LOGIN_DEADLINE },
        deadline: LOGIN_DEADLINE,
    };
    let server = |host: &config::Host| {
        let settings = UpstreamSettings { host: host.name.as_str().into(), spoken: Arc::default(), ..upstream.clone() };
        Arc::new(Server { port: host.port, settings })
    };
    Ok(Arc::new(Target {
        name: connection.name.as_str().into(),
        servers: connection.hosts.iter().map(server).collect(),
        attributes: connection.attributes,
        user: connection.user.as_str().into(),
        identity_parameters: if connection.identity_parameters {
            IdentityParameters::Set
        } else {
            IdentityParameters::Unset
        },
        database: connection.database.clone(),
        accept_users: connection.accept_users.clone(),
        mode: policy_mode(connection),
        catalogs: Catalogs::default(),
        withheld: ArcSwapOption::empty(),
    }))
}

/// Denials of `unknown` are lifted on connections without masks, and there are none with any.
const fn policy_mode(connection: &Connection) -> Mode {
    match connection.mode {
        config::Mode::Enforce => Mode::Enforce,
        config::Mode::Observe => Mode::Observe(Lifts::Everything),
    }
}
