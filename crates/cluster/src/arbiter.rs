//! The arbiter: a compare-and-swap on a VM's claim in the cluster store.

use std::sync::Arc;

use protocol::{Arbiter, Claim, Generation, Unreachable, Verdict};
use spec::VmName;

use crate::records::{ClaimRecord, ClusterError, claim_key, decode, encode};
use crate::store::{Compare, Op, Outcome, Store};

/// How often a claim is read again when its record has changed without its generation.
const ATTEMPTS_MAX: u32 = 8;

/// Arbitrates between the replicas of one VM.
///
/// The answer says what the store holds, nothing else: [`Verdict::Lost`] with the very claim that was asked for may mean that an
/// earlier attempt won and its answer was lost. Whoever asked can tell, as no two replicas ask for the same claim.
pub struct StoreArbiter {
    store: Arc<dyn Store>,
    vm: String,
}

impl StoreArbiter {
    /// The arbiter of the VM of that name.
    pub fn new(store: Arc<dyn Store>, vm: &str) -> Self {
        Self { store, vm: vm.to_owned() }
    }

    /// Key of the claim's record, the record, its version.
    fn record(&self) -> Result<(String, ClaimRecord, u64), ClusterError> {
        let vm: VmName = self.vm.parse()?;
        let key = claim_key(&vm);
        let entry = self.store.get(&key)?.ok_or(ClusterError::NoVm(vm))?;
        let record = decode(&key, &entry.value)?;
        Ok((key, record, entry.version))
    }

    /// Claims the VM for `new`'s primary, which runs under its host's run lease or does not.
    pub fn claim_for_start(
        &self,
        expected: Generation,
        new: &Claim,
        under_lease: bool,
    ) -> Result<Verdict, Unreachable> {
        self.swap_if_next(expected, new, |record| ClaimRecord { under_lease, ..record })
    }

    /// Leaves the VM of `new`'s primary, which could not start it under its run lease and of which nothing runs, to whoever can.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn give_up(&self, expected: Generation, new: &Claim) -> Result<Verdict, Unreachable> {
        self.swap_if_next(expected, new, |record| ClaimRecord { under_lease: true, given_up: true, ..record })
    }

    fn swap_if_next(
        &self,
        expected: Generation,
        new: &Claim,
        change: impl Fn(ClaimRecord) -> ClaimRecord,
    ) -> Result<Verdict, Unreachable> {
        if new.generation == expected || new.generation != expected.next() {
            return Err(Unreachable(format!("generation {} does not follow {expected}", new.generation)));
        }
        self.swap(expected, new, change).map_err(|error| Unreachable(error.to_string()))
    }

    fn swap(
        &self,
        expected: Generation,
        new: &Claim,
        change: impl Fn(ClaimRecord) -> ClaimRecord,
    ) -> Result<Verdict, ClusterError> {
        let mut last_key = String::new();
        for _ in 0..ATTEMPTS_MAX {
            let (key, record, version) = self.record()?;
            if record.claim.generation != expected {
                return Ok(Verdict::Lost(record.claim));
            }
            let value = encode(&key, &change(record.succeeded_by(new.clone())))?;
            let compare = Compare { key: &key, version };
            if let Outcome::Done { .. } =
                self.store.transact(&[compare], &[Op::Put { key: &key, value: &value, lease: None }])?
            {
                return Ok(Verdict::Won);
            }
            last_key = key;
        }
        Err(ClusterError::Contended(last_key))
    }
}

impl Arbiter for StoreArbiter {
    fn read(&self) -> Result<Claim, Unreachable> {
        self.record().map(|(_, record, _)| record.claim).map_err(|error| Unreachable(error.to_string()))
    }

    fn compare_and_swap(&self, expected: Generation, new: &Claim) -> Result<Verdict, Unreachable> {
        self.swap_if_next(expected, new, |record| record)
    }
}
