//! `weir run` with everything real: the launcher, the control socket, cgroups, mounts, terminals. Needs root.

// Marked as tests so that the lints for tests hold for their helpers as well.
#[cfg(test)]
mod apart;
#[cfg(test)]
mod confinement;
#[cfg(test)]
mod support;
#[cfg(test)]
mod terminal;
