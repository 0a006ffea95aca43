//! Transactions that are done once, though the answer may get lost.
//!
//! Who gets no answer does not know whether its transaction was done, or still will be: a member may have it in its memory, and be stopped. So each
//! client has a key of its own, the *receipt*. Each of its transactions compares the revision of the receipt with the one that its last
//! transaction left, and writes a *nonce* there, a number that is used once. Therefore
//!
//! - it can be asked for again, as the very same transaction: at most one of the copies is done, as it moves the receipt;
//! - if the receipt holds its nonce, an earlier copy was done, and at which revision; if the receipt has not moved, none was, and what was compared
//!   did not hold;
//! - once the client has gone on, no copy that is still on its way can be done.
//!
//! The receipt is under a lease, so that those of clients that are gone go too. A client that does not know what became of a transaction writes the
//! receipt before it goes on, whatever is there: so it has gone on.

use std::time::{Duration, Instant};

use super::client::{CallError, Client};
use super::wire::{
    Bytes, CompareRevision, Number, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use super::{EtcdStore, RANGE, TXN};
use crate::store::{LeaseId, Outcome, Store, StoreError};

/// How long a receipt stays after its client's last sign of life.
const TTL: Duration = Duration::from_secs(600);
/// How often that sign is given, if there are transactions.
const RENEWAL: Duration = Duration::from_secs(200);

/// The transactions of one client, one after the other.
pub struct Session {
    receipt: String,
    lease: LeaseId,
    kept: Instant,
    /// The receipt's revision.
    revision: u64,
    /// Transactions so far.
    count: u64,
    is_certain: bool,
}

impl Session {
    /// Begins one: with a receipt that is there, as absence has no revision of its own.
    pub fn begin(store: &EtcdStore) -> Result<Self, StoreError> {
        let lease = store.grant_lease(TTL)?;
        let receipt = format!("{}{:016x}", store.client.receipts(), lease.0);
        let mut session = Self { receipt, lease, kept: Instant::now(), revision: 0, count: 0, is_certain: true };
        session.revision = session.write(&store.client, "begun")?;
        Ok(session)
    }

    /// Makes sure that no copy of an earlier transaction can still be done, and that the receipt's revision is known.
    ///
    /// # Errors
    /// [`StoreError::LeaseEnded`] if the receipt is gone, and with it whatever copies compare.
    pub fn make_certain(&mut self, client: &Client) -> Result<(), StoreError> {
        if !self.is_certain {
            self.revision = self.write(client, "abandoned")?;
            self.is_certain = true;
        }
        Ok(())
    }

    /// Whether a transaction can be done at once: what is known of the receipt is so, and its lease is good for a while.
    pub fn is_good(&mut self, store: &EtcdStore) -> Result<bool, StoreError> {
        self.make_certain(&store.client)?;
        if !self.is_fresh() && !self.keep(store)? {
            return Ok(false);
        }
        let request = RangeRequest { key: Bytes::key(&self.receipt), range_end: None };
        let found: RangeResponse = store.client.ask_until_answered(RANGE, &request)?;
        Ok(found.kvs.first().is_some_and(|receipt| receipt.mod_revision.0 == self.revision))
    }

    /// Whether its lease need not be renewed yet.
    pub fn is_fresh(&self) -> bool {
        self.kept.elapsed() < RENEWAL
    }

    /// Renews its lease; whether it was there.
    pub fn keep(&mut self, store: &EtcdStore) -> Result<bool, StoreError> {
        let asked = Instant::now();
        let is_there = store.keep_lease(self.lease)?;
        self.kept = asked;
        Ok(is_there)
    }

    /// Writes the receipt, whatever is there; answers a revision of it. May be done several times, and late.
    fn write(&self, client: &Client, text: &str) -> Result<u64, StoreError> {
        let success = vec![self.put(text)];
        let request = TxnRequest { compare: Vec::new(), success, failure: Vec::new() };
        let answer: TxnResponse = client.ask_until_answered(TXN, &request)?;
        Ok(answer.header.revision.0)
    }

    fn put(&self, text: &str) -> RequestOp {
        let (key, value) = (Bytes::key(&self.receipt), Bytes::key(text));
        RequestOp::Put(PutRequest { key, value, lease: Some(Number(self.lease.0)) })
    }

    /// Does a transaction, once.
    pub fn transact(&mut self, client: &Client, wanted: &TxnRequest) -> Result<Outcome, StoreError> {
        self.count += 1;
        let nonce = self.count.to_string();
        let mut request = wanted.clone();
        request.compare.push(CompareRevision::new(&self.receipt, self.revision));
        request.success.push(self.put(&nonce));
        request.failure = vec![RequestOp::Range(RangeRequest { key: Bytes::key(&self.receipt), range_end: None })];
        let mut patience = client.patience();
        let mut is_repeated = false;
        loop {
            // Who answers after a failure may be an older copy: that must not be changed.
            if is_repeated && let Err(CallError::Ambiguous(why)) = self.look(client) {
                if !patience.is_left() {
                    return Err(self.unknown(client, &why));
                }
                continue;
            }
            match client.ask::<TxnResponse>(TXN, &request) {
                Ok(answer) if answer.succeeded => return Ok(self.done(answer.header.revision.0)),
                Ok(answer) => return self.not_done(client, &answer, &nonce, is_repeated),
                Err(CallError::Refused(problem)) if !is_repeated => return Err(client.explain(&problem)),
                Err(CallError::Refused(problem)) => return Err(self.unknown(client, problem.text())),
                Err(CallError::Ambiguous(why)) => {
                    is_repeated = true;
                    if !patience.is_left() {
                        return Err(self.unknown(client, &why));
                    }
                }
            }
        }
    }

    /// Reads something.
    fn look(&self, client: &Client) -> Result<RangeResponse, CallError> {
        client.ask(RANGE, &RangeRequest { key: Bytes::key(&self.receipt), range_end: None })
    }

    fn done(&mut self, revision: u64) -> Outcome {
        self.revision = revision;
        Outcome::Done { revision }
    }

    /// What it means that this copy of the transaction was not done.
    fn not_done(
        &mut self,
        client: &Client,
        answer: &TxnResponse,
        nonce: &str,
        is_repeated: bool,
    ) -> Result<Outcome, StoreError> {
        let read = answer.responses.first().and_then(|response| response.response_range.as_ref());
        let receipt = read.and_then(|range| range.kvs.first());
        match receipt {
            Some(receipt) if receipt.value == Bytes::key(nonce) => Ok(self.done(receipt.mod_revision.0)),
            Some(receipt) if receipt.mod_revision.0 == self.revision => {
                if is_repeated {
                    // A copy that is still on its way must not be done: what it compares may hold by then.
                    self.is_certain = false;
                    self.make_certain(client)?;
                }
                Ok(Outcome::Conflict)
            }
            // It went with its lease, and this was the only copy.
            None if !is_repeated => {
                self.is_certain = false;
                Err(StoreError::LeaseEnded)
            }
            _ => Err(self.unknown(client, "its receipt is gone")),
        }
    }

    fn unknown(&mut self, client: &Client, why: &str) -> StoreError {
        self.is_certain = false;
        match client.unreachable(why) {
            StoreError::Unreachable(text) => {
                StoreError::Unreachable(format!("{text}; whether the change was made is not known"))
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Or nobody would try again until the receipt is gone.
    #[test]
    fn a_lease_that_could_not_be_renewed_does_not_count_as_renewed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("etcd://{}", listener.local_addr().unwrap()).parse().unwrap();
        // Nobody listens there from now on.
        drop(listener);
        let client = Arc::new(Client::new(address, None, None).unwrap());
        let store = EtcdStore { client, entries: String::new(), session: Mutex::default(), streams: Mutex::default() };
        let kept = Instant::now().checked_sub(RENEWAL).unwrap();
        let receipt = "twinvm/r/1".to_owned();
        let mut session = Session { receipt, lease: LeaseId(1), kept, revision: 1, count: 0, is_certain: true };
        assert!(matches!(session.keep(&store), Err(StoreError::Unreachable(_))));
        assert!(!session.is_fresh());
    }
}
