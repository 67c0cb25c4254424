//! A daemon that redirects and nothing else, so that a test can kill it:
//! `redirector SCOPE PINS PORT DAEMON-CGROUP (protect ADDRESS | enrol CGROUP)…`, cgroups as folders.

use anyhow::{Context as _, Result, bail};
use end_to_end::kernel_support::{Front, protected};
use gateway_daemon::redirect::{Egress, EgressSettings, Guard, Kernel, RedirectSettings, cgroup::id_of};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [scope, pins, port, daemon, rest @ ..] = arguments.as_slice() else { bail!("too few arguments") };
    std::fs::write(format!("{daemon}/cgroup.procs"), "0").context("enter the daemon's cgroup")?;
    let mut settings = RedirectSettings {
        scope: scope.into(),
        pins: pins.into(),
        listener_port: port.parse()?,
        guard: Guard::Host,
        protected: Vec::new(),
        allowed_uids: Vec::new(),
        allowed_cgroups: Vec::new(),
        agent_uids: Vec::new(),
        daemon_cgroup: id_of(daemon.as_ref())?,
        egress: EgressSettings::default(),
    };
    let mut agents = Vec::new();
    for pair in rest.chunks(2) {
        match pair {
            [verb, address] if verb == "protect" => settings.protected.push(protected(address.parse()?, 1)),
            [verb, folder] if verb == "enrol" => agents.push(id_of(folder.as_ref())?),
            other => bail!("unknown: {other:?}"),
        }
    }
    let kernel = Kernel::start(&settings)?;
    for agent in agents {
        kernel.enrol(agent, Egress::OPEN)?;
    }
    let _front = Front::start(&kernel)?;
    println!("ready");
    // Until killed, or whoever started it is gone.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
