//! What a host may do with its replica when it is asked: the claim is decided first.

use cluster::controller::consent::{
    Here, LetGo, NotDropped, NotPrepared, NotStarted, is_displaced, let_go, may_drop, may_prepare, may_start,
};
use protocol::{Claim, Generation};
use spec::{HostName, ReplicaId};

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
