//! What a host may do with its replica when it is asked: the claim is decided first.

use cluster::controller::consent::{
    Here, LetGo, NotDropped, NotPrepared, NotStarted, Scene, is_displaced, let_go, may_drop, may_hand_over,
    may_prepare, may_start,
};
use cluster::controller::{Action, Step};
use cluster::records::{FtSettings, OperationKind, Power, VmRecord};
use protocol::{Claim, Generation};
use spec::{FtMode, HostName, ReplicaId};

const HERES: [Here; 4] = [Here::Nothing, Here::Waiting, Here::Following, Here::Primary];

fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

/// Host `a` is the primary's, in generation 5.
fn claim(secondary: Option<&str>) -> Claim {
    let secondary = secondary.map(ReplicaId::new);
    Claim { generation: Generation::new(5), primary: ReplicaId::new("a"), secondary }
}

#[test]
fn a_vm_starts_at_home_unless_somebody_forces_it_and_never_beside_itself() {
    let claim = claim(Some("b"));
    for here in HERES {
        let runs = if here == Here::Nothing { Ok(()) } else { Err(NotStarted::Runs) };
        assert_eq!(may_start(&claim, &host("a"), here, false), runs);
        assert_eq!(may_start(&claim, &host("a"), here, true), runs);
        assert_eq!(may_start(&claim, &host("b"), here, false), Err(NotStarted::NotAtHome));
    }
    assert_eq!(may_start(&claim, &host("c"), Here::Following, true), Err(NotStarted::Follows));
    for here in [Here::Nothing, Here::Waiting, Here::Primary] {
        assert_eq!(may_start(&claim, &host("c"), here, true), Ok(()));
    }
}

/// A replica that does not answer counts as a primary, and one that has just got its primary says that it waits.
#[test]
fn a_forced_start_ends_no_replica_that_the_claim_names_as_secondary() {
    assert_eq!(may_start(&claim(Some("b")), &host("b"), Here::Following, true), Err(NotStarted::Follows));
    for here in [Here::Waiting, Here::Primary] {
        assert_eq!(may_start(&claim(Some("b")), &host("b"), here, true), Err(NotStarted::Undecided), "{here:?}");
    }
    assert_eq!(may_start(&claim(Some("b")), &host("b"), Here::Nothing, true), Ok(()));
    for secondary in [None, Some("c")] {
        assert_eq!(may_start(&claim(secondary), &host("b"), Here::Primary, true), Ok(()), "one that was succeeded");
    }
}

/// The primary has lost it and asks for another one, before the store has answered who goes on. Also one that was killed: what it has asked the store
/// for may be carried out late, and its disks are the VM's then.
#[test]
fn a_secondary_that_the_claim_names_makes_no_room_for_another_one() {
    let prepare = |claim: &Claim, name: &str, primary: &str, generation| {
        may_prepare(claim, &host(name), &ReplicaId::new(primary), Generation::new(generation))
    };
    assert_eq!(prepare(&claim(Some("b")), "b", "a", 5), Err(NotPrepared::Undecided));
    assert_eq!(prepare(&claim(Some("c")), "b", "a", 5), Ok(()));
    assert_eq!(prepare(&claim(None), "b", "a", 5), Ok(()));
    assert_eq!(prepare(&claim(None), "a", "a", 5), Err(NotPrepared::IsPrimary));
    for (primary, generation) in [("c", 5), ("a", 4), ("a", 6)] {
        assert_eq!(prepare(&claim(None), "b", primary, generation), Err(NotPrepared::Changed));
    }
}

#[test]
fn nothing_is_dropped_that_the_claim_names() {
    let home = Some("a");
    assert_eq!(may_drop(&claim(Some("b")), &host("b"), home), Err(NotDropped::IsSecondary));
    assert_eq!(may_drop(&claim(Some("b")), &host("a"), home), Err(NotDropped::IsPrimary));
    assert_eq!(may_drop(&claim(Some("b")), &host("c"), home), Ok(()));
    for asker in [None, Some("b")] {
        assert_eq!(may_drop(&claim(None), &host("c"), asker), Err(NotDropped::NotForAsker));
    }
    assert_eq!(let_go(&claim(Some("b")), &host("a")), LetGo::Wait);
    assert_eq!(let_go(&claim(None), &host("a")), LetGo::Drop);
    assert_eq!(let_go(&claim(None), &host("b")), LetGo::TakenOver);
}

#[test]
fn only_an_earlier_primary_and_a_secondary_without_one_are_displaced() {
    let displaced =
        |name, here, generation| is_displaced(&claim(Some("b")), &host(name), here, Generation::new(generation));
    let primaries = [("b", 4), ("b", 5), ("b", 6), ("a", 4)];
    let ended = primaries.map(|(name, generation)| displaced(name, Here::Primary, generation));
    assert_eq!(ended, [true, false, false, false]);
    assert!(displaced("c", Here::Waiting, 0));
    // A primary has come to it since that was seen.
    assert!(!displaced("b", Here::Following, 5) && !displaced("c", Here::Following, 0));
}

/// A VM of host `a`, which runs there and is to be protected.
fn record() -> VmRecord {
    let spec = "name = \"v\"\nmemory = \"1G\"\nkernel = \"k\"\n".to_owned();
    let ft = FtSettings { enabled: true, ..FtSettings::disabled(100, 50) };
    VmRecord { power: Power::On, ..VmRecord::new("v".parse().unwrap(), spec, ft, 0) }
}

/// Which of the actions that can be out of date are still wanted, by their first letters.
fn wanted(record: &VmRecord, claim: &Claim, name: &str, has_replica: bool) -> String {
    let (host, to) = (host(name), host("c"));
    let scene = Scene { record, claim, host: &host, has_replica };
    let restart = |at_home| Action::Restart { on: host.clone(), at_home };
    let actions = [
        ("protect", Action::Protect { secondary: to.clone() }),
        ("unprotect", Action::Unprotect),
        ("move", Action::Move { to }),
        ("start", Action::AskForStart),
        ("settle", Action::SettleClaim),
        ("off", Action::NotePowerOff),
        ("home", restart(true)),
        ("here", restart(false)),
        ("end", Action::EndReplica),
    ];
    let wanted = actions.iter().filter(|(_, action)| scene.wants(action)).map(|(name, _)| *name);
    wanted.collect::<Vec<_>>().join(" ")
}

/// Between a decision and what comes of it, somebody may have asked for something else, another host taken the VM over, or the replica ended.
#[test]
fn what_was_decided_is_done_only_while_it_is_wanted() {
    let [protected, alone] = [claim(Some("b")), claim(None)];
    let on = record();
    let mut off = record();
    off.ft.enabled = false;
    assert_eq!(wanted(&on, &alone, "a", true), "protect move end");
    assert_eq!(wanted(&on, &alone, "b", true), "end", "it is another host's by now");
    assert_eq!(wanted(&on, &alone, "a", false), "off");
    assert_eq!(wanted(&off, &protected, "a", true), "unprotect move end");
    assert_eq!(wanted(&off, &protected, "a", false), "settle off");
    assert_eq!(wanted(&on, &protected, "a", false), "off", "a secondary may take it over, and is to");
    let started = VmRecord { autostart: true, ..record() };
    assert_eq!(wanted(&started, &alone, "a", false), "start off");
    assert_eq!(wanted(&started, &alone, "a", true), "protect move end");
    let mut restarted = VmRecord { ft: FtSettings::disabled(100, 50), ..record() };
    restarted.ha.enabled = true;
    assert_eq!(wanted(&restarted, &alone, "a", false), "off home");
    assert_eq!(wanted(&restarted, &alone, "b", false), "off here");
    assert_eq!(wanted(&restarted, &alone, "a", true), "unprotect move end");
    assert_eq!(wanted(&VmRecord { power: Power::Off, ..restarted.clone() }, &alone, "b", false), "off");
    for mut asked in [started, restarted] {
        asked.ask(OperationKind::Stop { force: true }, None, alone.generation);
        assert_eq!(wanted(&asked, &alone, "a", false), "off", "somebody asked for something else");
    }
}

#[test]
fn steps_and_their_consequences_are_those_of_the_operation_that_was_asked_for() {
    let (mut record, claim, home, other) = (record(), claim(Some("b")), host("a"), host("b"));
    let id = record.ask(OperationKind::Switchover { from: home.clone() }, None, claim.generation);
    let scene = Scene { record: &record, claim: &claim, host: &home, has_replica: true };
    let step = |operation| Action::Step { operation, step: Step::SwitchOver, is_last: true };
    assert!(scene.wants(&step(id)) && !scene.wants(&step(id + 1)));
    let asked = record.pending().unwrap();
    let later = Claim { generation: claim.generation.next(), ..claim.clone() };
    assert!(scene.may_go_over(asked, true) && !scene.may_go_over(asked, false));
    assert!(!Scene { claim: &later, ..scene }.may_go_over(asked, true), "it has been taken over meanwhile");
    assert!(may_hand_over(true, Some("b"), &other) && !may_hand_over(true, Some("c"), &other));
    assert!(!may_hand_over(false, Some("b"), &other) && !may_hand_over(true, None, &other));
    // Copies of a protected VM's disks are kept, and those that may be the newest.
    let (off, alone) = (VmRecord { ft: FtSettings::disabled(100, 50), ..record.clone() }, self::claim(None));
    let removes =
        |record: &VmRecord, claim: &Claim, host| Scene { record, claim, host, has_replica: true }.may_remove_copies();
    assert!(removes(&off, &alone, &home) && !removes(&off, &alone, &other));
    assert!(!removes(&off, &claim, &home) && !removes(&record, &alone, &home));
    // The end of a guest is noted at home, once.
    let notes =
        |record: &VmRecord, host, has_replica| Scene { record, claim: &alone, host, has_replica }.notes_power_off();
    assert!(notes(&off, &home, false) && !notes(&off, &home, true) && !notes(&off, &other, false));
    let noted = VmRecord { power: Power::Off, ..off };
    assert!(!notes(&noted, &home, false));
}

/// A move or another mode waits for what is under way; a start or a stop takes its place.
#[test]
fn what_is_under_way_hinders_moves_and_changes_of_the_mode() {
    let generation = Generation::new(5);
    let to = host("c");
    let kinds = [
        OperationKind::Migrate { to },
        OperationKind::ChangeMode { mode: FtMode::Lockstep },
        OperationKind::Stop { force: false },
    ];
    for (asked, hindered) in kinds.iter().zip([[false, true, false], [true, false, false], [true, true, false]]) {
        let mut record = record();
        assert!(kinds.iter().all(|kind| record.hinders(kind).is_none()));
        record.ask(asked.clone(), None, generation);
        assert_eq!(kinds.each_ref().map(|kind| record.hinders(kind).is_some()), hindered, "{asked:?}");
    }
}
