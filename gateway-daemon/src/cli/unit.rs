//! `weir agent unit`: what a service's unit needs to be confined as `weir run` confines.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::{Result, bail};

use crate::{
    config::{Agent, Config, RunsAs},
    daemon::{covered_paths, slice_unit_name},
};

/// Prints the drop-in of an agent.
pub(super) fn unit(path: &Path, name: &str) -> Result<ExitCode> {
    let config = Config::load(path)?;
    let Some(agent) = config.agent(name) else { bail!("no agent `{}` is configured", name.escape_debug()) };
    let RunsAs::User(user) = &agent.runs_as else {
        bail!("agent `{name}` has a `uid_pool`, and a unit has one user; give it a `user`, or start it by `weir run`");
    };
    if agent.token_file.is_none() {
        bail!("agent `{name}` has no `token_file`, so nobody could vouch for what runs in its slice; configure one");
    }
    write!(io::stdout().lock(), "{}", drop_in(&config, agent, user))?;
    Ok(ExitCode::SUCCESS)
}

fn drop_in(config: &Config, agent: &Agent, user: &str) -> String {
    let runtime = &config.daemon.runtime_dir;
    let (own, bundle) = (runtime.join("ca.pem"), runtime.join("ca-bundle.pem"));
    let (own, bundle) = (own.display(), bundle.display());
    let covered = covered_paths(config);
    let covered: Vec<String> = covered.iter().map(|path| format!("-{}", path.display())).collect();
    format!(
        "\
# Makes a service the agent `{name}` of Weir's. Put it at /etc/systemd/system/SERVICE.service.d/weir.conf, then:
# systemctl daemon-reload && systemctl restart SERVICE

[Unit]
Requires=weir.service
After=weir.service

[Service]
# All that runs below this slice is the agent, from its first instruction on.
Slice={slice}
User={user}
# No way to more rights.
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
SecureBits=noroot noroot-locked
# No way around Weir: other socket families, rings, other calling conventions, runtimes' and servers' sockets.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=~io_uring_setup io_uring_enter io_uring_register
SystemCallErrorNumber=EPERM
RestrictSUIDSGID=yes
InaccessiblePaths={covered}
# What dies leaves no memory behind.
LimitCORE=1
UMask=0022
# So that its clients trust Weir's certificates.
Environment=PGSSLROOTCERT={own} SSL_CERT_FILE={bundle} REQUESTS_CA_BUNDLE={bundle} NODE_EXTRA_CA_CERTS={bundle}
",
        name = agent.name,
        slice = slice_unit_name(&agent.name),
        covered = covered.join(" "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_in_is_as_it_was_reviewed() {
        let text = r#"
[[issuer]]
name = "corp"
issuer = "https://idp.example"
audience = "weir"
algorithms = ["RS256"]

[[agent]]
name = "claude-code"
user = "agent-claude"
issuer = "corp"
token_file = "/etc/weir/claude.token"

[[connection]]
name = "orders"
protocol = "postgres"
host = "10.0.0.5"
unix_sockets = ["/run/postgresql/.s.PGSQL.5432"]
user = "weir_orders"
"#;
        let config = Config::parse(Path::new("weir.toml"), text).unwrap();
        let agent = config.agent("claude-code").unwrap();
        insta::assert_snapshot!(drop_in(&config, agent, "agent-claude"));
    }
}
