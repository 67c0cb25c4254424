//! The daemon's life: it is killed, its disk fills up, its policies change under open sessions, it is set up wrongly;
//! and whoever tries to get round it meanwhile is refused, and on the record.

mod assign;
mod configuration;
mod connections;
mod disk;
mod doctor;
mod egress;
mod init;
mod kill;
mod observe;
mod pins;
mod policies;
mod pool;
mod slices;
mod sockets;
mod stage;
mod unrecorded;
mod ways;
