//! The record through its public face.

#[cfg(test)]
mod api;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod full;
#[cfg(test)]
mod property;
#[cfg(test)]
mod show;
#[cfg(test)]
mod support;
