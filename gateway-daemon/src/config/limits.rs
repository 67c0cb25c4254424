//! `[limits]`, and what one agent may use up.

use std::time::Duration;

use super::{
    Limits,
    check::{Checker, Place},
    raw,
};
use crate::limits::AgentLimits;

/// The most that an amount may be: sums of it stay below what a number holds.
const MOST: u64 = 1 << 60;

impl Checker<'_> {
    pub(super) fn limits(&mut self, raw: &raw::Limits) -> Limits {
        let place = Place::section("limits");
        let mut size = |key: &str, value: Option<usize>, default: usize, least: usize, most: usize| {
            let value = value.unwrap_or(default);
            if !(least..=most).contains(&value) {
                self.fault(&place, key, format!("{value} is out of range; use {least} to {most}"));
            }
            value
        };
        let message_bytes = size("message_bytes", raw.message_bytes, 64 << 20, 64 << 10, 1 << 30);
        let server_message_bytes = size("server_message_bytes", raw.server_message_bytes, 1 << 30, 64 << 10, 1 << 30);
        let statement_bytes =
            size("statement_bytes", raw.statement_bytes, 1 << 20, 1 << 10, crate::sql::MAX_TEXT_BYTES);
        let most = crate::sql::ReadLimits::default();
        let statement_nesting = size("statement_nesting", raw.statement_nesting, most.nesting, 8, most.nesting);
        let statement_tokens = size("statement_tokens", raw.statement_tokens, most.tokens, 64, most.tokens);
        let connections = size("connections", raw.connections, 2_000, 1, 100_000);
        let pipeline = size("pipeline", raw.pipeline, 20_000, 16, 1_000_000);
        let prepared_statements = size("prepared_statements", raw.prepared_statements, 10_000, 1, 1_000_000);
        let startup = self.duration(&place, "startup", raw.startup.as_deref(), Duration::from_secs(30));
        if startup.is_zero() {
            let message = "is zero, so that no session would ever begin; leave it out, or write it as `30s`";
            self.fault(&place, "startup", message);
        }
        let idle = self.duration(&place, "idle", raw.idle.as_deref(), Duration::from_secs(12 * 3600));
        Limits {
            message_bytes,
            server_message_bytes,
            statement_bytes,
            statement_nesting,
            statement_tokens,
            startup,
            idle: (!idle.is_zero()).then_some(idle),
            connections,
            pipeline,
            prepared_statements,
            agent: self.agent_limits(&Place::section("limits.agent"), &raw.agent, AgentLimits::default()),
        }
    }

    /// What stands there, in place of the `others`.
    pub(super) fn agent_limits(&mut self, place: &Place, raw: &raw::AgentLimits, others: AgentLimits) -> AgentLimits {
        let mut within = |key: &str, value: Option<u64>, other: u64, most: u64| {
            let value = value.unwrap_or(other);
            if !(1..=most).contains(&value) {
                self.fault(place, key, format!("{value} is out of range; use 1 to {most}"));
            }
            value
        };
        AgentLimits {
            connections: within("connections", raw.connections, others.connections, 100_000),
            connects_per_second: within(
                "connects_per_second",
                raw.connects_per_second,
                others.connects_per_second,
                1_000_000,
            ),
            statements_per_second: within(
                "statements_per_second",
                raw.statements_per_second,
                others.statements_per_second,
                10_000_000,
            ),
            rows_per_hour: within("rows_per_hour", raw.rows_per_hour, others.rows_per_hour, MOST),
            bytes_per_hour: within("bytes_per_hour", raw.bytes_per_hour, others.bytes_per_hour, MOST),
            record_bytes_per_hour: within(
                "record_bytes_per_hour",
                raw.record_bytes_per_hour,
                others.record_bytes_per_hour,
                MOST,
            ),
            store_share: within("store_share", raw.store_share, others.store_share, 100),
        }
    }
}
