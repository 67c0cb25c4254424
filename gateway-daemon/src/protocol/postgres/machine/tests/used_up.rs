//! An agent that has used up an amount: before a statement, in the middle of an answer, and when the server was done first.

use super::*;

/// An agent that may have ten rows.
fn ten_rows() -> Machine<TestJudge> {
    machine_of(Account::alone("claude", AgentLimits { rows_per_hour: 10, ..AgentLimits::NONE }))
}

fn rows(count: usize) -> Vec<u8> {
    message(b'D', b"\0\x01\0\0\0\x011").repeat(count)
}

fn complete(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

fn ready(status: u8) -> Vec<u8> {
    message(b'Z', &[status])
}

/// A Query of which ten rows were passed and then five more came: those are dropped, and the server is to be asked to stop.
fn cut_off(sql: &str) -> Machine<TestJudge> {
    let mut machine = ten_rows();
    machine.agent_says(&query(sql));
    assert_eq!(tags(&machine.left(Side::Server)), "Q");
    over(&mut machine);
    assert_eq!(tags(&machine.left(Side::Agent)), format!("T{}", "D".repeat(10)));
    machine
}

fn over(machine: &mut Machine<TestJudge>) {
    machine.server_says(&message(b'T', b"\0\0"));
    machine.server_says(&rows(10));
    // A short answer is charged at its end; here a long one of another session was, meanwhile.
    machine.account.charge(Instant::now(), &[], 10, 0);
    assert!(!machine.take_cancel());
    machine.server_says(&rows(5));
    assert!(machine.take_cancel() && !machine.take_cancel(), "asked once");
}

fn assert_used_up(told: &[u8], status: u8) {
    assert_eq!(tags(told), "EZ");
    let text = String::from_utf8_lossy(told);
    assert!(text.contains("C53400") && text.contains("its limit `rows_per_hour` is 10, free again at 20"), "{text}");
    assert_eq!(told.last(), Some(&status));
}

#[test]
fn the_rest_of_an_answer_is_dropped_and_the_server_s_cancel_is_told_as_ours() {
    let mut machine = cut_off("SELECT 1");
    assert_eq!(tags(&machine.left(Side::Server)), "H");
    assert_eq!(machine.agent_says(&query("SELECT 2")), Taken { bytes: 0, stop: Stop::Busy }, "not read meanwhile");
    machine.server_says(&rows(100));
    machine.server_says(&[error("57014"), ready(b'E')].concat());
    assert_used_up(&machine.left(Side::Agent), b'E');
    assert_eq!(machine.agent_says(&query("ROLLBACK")).stop, Stop::More, "what was begun may be ended");
    assert_eq!(machine.left(Side::Server), query("ROLLBACK"));
    machine.server_says(&[complete("ROLLBACK"), ready(b'I')].concat());
    machine.left(Side::Agent);
    machine.agent_says(&query("SELECT 2"));
    let stand_in = machine.left(Side::Server);
    assert_eq!(stand_in, query("!weir refused this statement"));
    machine.server_says(&[error("42601"), ready(b'I')].concat());
    assert_used_up(&machine.left(Side::Agent), b'I');
}

#[test]
fn a_server_that_was_done_first_is_made_to_fail_the_transaction() {
    let mut machine = cut_off("SELECT 1");
    machine.left(Side::Server);
    machine.server_says(&[complete("SELECT 15"), ready(b'T')].concat());
    assert_eq!(machine.left(Side::Agent), b"");
    assert_eq!(machine.left(Side::Server), query("!weir refused this statement"));
    machine.server_says(&[error("42601"), ready(b'E')].concat());
    assert_used_up(&machine.left(Side::Agent), b'E');
    assert!(machine.is_idle());
}

#[test]
fn outside_of_a_transaction_reading_alone_leaves_nothing_to_undo() {
    let mut machine = cut_off("SELECT 1");
    machine.server_says(&[complete("SELECT 15"), ready(b'I')].concat());
    assert_used_up(&machine.left(Side::Agent), b'I');
    assert!(machine.cut.is_none() && machine.wants_agent());
}

#[test]
fn what_had_effects_and_cannot_be_undone_ends_the_session() {
    let mut machine = ten_rows();
    machine.effects = true;
    machine.agent_says(&query("SELECT 1"));
    over(&mut machine);
    let fault = machine.from_server(&[complete("INSERT 0 15"), ready(b'I')].concat()).unwrap_err();
    assert!(matches!(fault, Fault::UsedUp(_)), "{fault}");
}

#[test]
fn in_a_pipeline_the_error_stands_where_the_server_would_put_it() {
    // The server hears of it in time, before it hears, and before the agent said Sync.
    for (rest, status) in [(None, b'E'), (Some(b'T'), b'E'), (Some(b'I'), b'I')] {
        let mut machine = ten_rows();
        machine.agent_says(&[parse("", "SELECT 1"), bind("", ""), execute(""), SYNC.to_vec()].concat());
        machine.server_says(&[message(b'1', b""), message(b'2', b"")].concat());
        machine.server_says(&rows(10));
        machine.account.charge(Instant::now(), &[], 10, 0);
        machine.server_says(&rows(5));
        assert_eq!(tags(&machine.left(Side::Server)), "PBESH");
        match rest {
            None => machine.server_says(&[error("57014"), ready(b'E')].concat()),
            Some(in_transaction) => {
                machine.server_says(&[complete("SELECT 15"), ready(in_transaction)].concat());
                if in_transaction == b'T' {
                    assert_eq!(machine.left(Side::Server), query("!weir refused this statement"));
                    machine.server_says(&[error("42601"), ready(b'E')].concat());
                }
            }
        }
        let told = machine.left(Side::Agent);
        assert_eq!(tags(&told), format!("12{}EZ", "D".repeat(10)));
        assert_eq!(told.last(), Some(&status), "{rest:?}");
        assert!(machine.is_idle());
    }
}

#[test]
fn without_a_sync_the_server_fails_by_a_stand_in() {
    let mut machine = ten_rows();
    machine.agent_says(&[parse("", "SELECT 1"), bind("", ""), execute(""), message(b'H', b"")].concat());
    machine.server_says(&[message(b'1', b""), message(b'2', b"")].concat());
    machine.server_says(&rows(10));
    machine.account.charge(Instant::now(), &[], 10, 0);
    machine.server_says(&[rows(5), complete("SELECT 15")].concat());
    assert_eq!(tags(&machine.left(Side::Server)), "PBEHHD");
    machine.server_says(&error("26000"));
    machine.agent_says(&SYNC);
    assert_eq!(tags(&machine.left(Side::Server)), "S");
    machine.server_says(&READY);
    let told = machine.left(Side::Agent);
    assert_eq!(tags(&told), format!("12{}EZ", "D".repeat(10)));
    assert!(String::from_utf8_lossy(&told).contains("C53400"));
}

#[test]
fn what_ran_behind_it_in_a_pipeline_ends_the_session() {
    let mut machine = ten_rows();
    machine.agent_says(&[parse("", "SELECT 1"), bind("", ""), execute("")].concat());
    machine.agent_says(&[bind("", ""), execute(""), SYNC.to_vec()].concat());
    machine.server_says(&[message(b'1', b""), message(b'2', b"")].concat());
    machine.server_says(&rows(10));
    machine.account.charge(Instant::now(), &[], 10, 0);
    machine.server_says(&rows(5));
    let fault = machine.from_server(&complete("SELECT 15")).unwrap_err();
    assert!(matches!(fault, Fault::UsedUp(_)), "{fault}");
}

#[test]
fn a_row_that_was_begun_is_ended_before_the_rest_is_dropped() {
    let mut machine = ten_rows();
    machine.agent_says(&query("SELECT 1"));
    let row = message(b'D', b"\0\x01\0\0\0\x03abc");
    let (one, two) = row.split_at(7);
    machine.server_says(one);
    machine.account.charge(Instant::now(), &[], 10, 0);
    machine.server_says(two);
    machine.server_says(&row);
    assert_eq!(machine.left(Side::Agent), row);
    assert!(machine.take_cancel());
}

#[test]
fn a_cancel_that_cannot_be_sent_ends_the_session() {
    let mut machine = cut_off("SELECT 1");
    assert!(matches!(machine.cancel_failed(), Err(Fault::UsedUp(_))));
}

#[test]
fn over_the_rate_a_message_waits_for_its_turn_and_takes_it_once() {
    let mut machine =
        machine_of(Account::alone("claude", AgentLimits { statements_per_second: 2, ..AgentLimits::NONE }));
    let taken = machine.agent_says(&[query("SELECT 1"), query("SELECT 2"), query("SELECT 3")].concat());
    assert_eq!(taken.bytes, 2 * query("SELECT 1").len());
    let Stop::Until(turn) = taken.stop else { panic!("{taken:?}") };
    assert!(turn > Instant::now());
    assert_eq!(machine.agent_says(&query("SELECT 3")).stop, Stop::More, "given again, it goes on");
    assert!(matches!(machine.agent_says(&query("SELECT 4")).stop, Stop::Until(later) if later > turn));
}

#[test]
fn whoever_has_filled_the_record_has_no_session() {
    let account = Account::alone("claude", AgentLimits { record_bytes_per_hour: 10, ..AgentLimits::NONE });
    let mut machine = machine_of(account.clone());
    machine.agent_says(&query("SELECT 1"));
    account.charge_record(10);
    assert!(matches!(machine.from_server(&rows(1)), Err(Fault::UsedUp(_))));
    assert!(matches!(machine.from_agent(&query("SELECT 1")), Err(Fault::UsedUp(_))));
}
