//! The store of a cluster whose hosts are on several machines: etcd, by its JSON gateway (etcd v3.4 and later).
//!
//! | below the cluster's name | is |
//! | --- | --- |
//! | `k/KEY` | the entry of a key |
//! | `r/ID`, or `r/USER/ID` where etcd knows users | the *receipt* of a client: see [`session`] |

mod access;
mod address;
mod client;
mod login;
mod pace;
mod session;
mod sight;
mod stream;
mod validity;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{
    Changes, Compare, Entry, LeaseId, Listing, Op, Outcome, Store, StoreError, check_key, check_prefix,
    check_transaction, end_of,
};
pub use access::{EtcdAccess, ROOT, user_of};
pub use address::{EtcdAddress, EtcdKeys, EtcdUser, SCHEME};
use client::{CallError, Client};
use session::Session;
pub use sight::Sight;
use stream::{Opened, Stream, Waited};
use wire::{
    Bytes, CompareRevision, Done, GrantRequest, KeyValue, LeaseRequest, LeaseResponse, Number, PutRequest,
    RangeRequest, RangeResponse, RequestOp, Streamed, TxnRequest, TxnResponse,
};

const RANGE: &str = "/v3/kv/range";
const TXN: &str = "/v3/kv/txn";
const GRANT: &str = "/v3/lease/grant";
const KEEP: &str = "/v3/lease/keepalive";
const REVOKE: &str = "/v3/lease/revoke";

/// What the receipts of a user's clients begin with; of clients without a user, if there is none.
fn receipts_of(address: &EtcdAddress, user: Option<&str>) -> String {
    let name = &address.name;
    user.map_or_else(|| format!("{name}/r/"), |user| format!("{name}/r/{user}/"))
}

/// A store in etcd.
///
/// Reads and transactions are linearizable. A call asks one member after the other until one answers, for five seconds at most. Leases are etcd's own,
/// counted by its leader's clock.
pub struct EtcdStore {
    client: Arc<Client>,
    /// What all keys of entries begin with.
    entries: String,
    /// That of the transactions of this client, which are done one after the other; none before the first.
    session: Mutex<Option<Session>>,
    /// Streams of changes that are open, by the prefix that they are of.
    streams: Mutex<BTreeMap<String, Stream>>,
}

impl EtcdStore {
    /// Opens the store at an address, over TLS if there are keys, and makes sure that it answers.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] if the keys cannot be used or no member answers.
    pub fn open(address: &EtcdAddress, keys: Option<&EtcdKeys>) -> Result<Self, StoreError> {
        Self::open_after(address, keys, None)
    }

    /// The same, if it is what was seen of it before or what came of that: an etcd that has gone back is not believed.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_after(
        address: &EtcdAddress,
        keys: Option<&EtcdKeys>,
        sight: Option<Sight>,
    ) -> Result<Self, StoreError> {
        let client = Arc::new(Client::new(address.clone(), keys, sight)?);
        let entries = format!("{}/k/", address.name);
        let store = Self { client, entries, session: Mutex::default(), streams: Mutex::default() };
        store.range("", None)?;
        Ok(store)
    }

    fn entry_key(&self, key: &str) -> String {
        format!("{}{key}", self.entries)
    }

    fn range(&self, key: &str, end: Option<String>) -> Result<RangeResponse, StoreError> {
        let range_end = end.map(|end| Bytes::key(&self.entry_key(&end)));
        self.client.ask_until_answered(RANGE, &RangeRequest { key: Bytes::key(&self.entry_key(key)), range_end })
    }

    /// The key of what etcd answers, without what all keys begin with.
    fn own_key(&self, kv: &KeyValue) -> Result<String, StoreError> {
        let key = std::str::from_utf8(&kv.key.0).ok().and_then(|key| key.strip_prefix(&self.entries));
        key.map(str::to_owned)
            .ok_or_else(|| StoreError::Corrupt(format!("{}: a key that was not asked for", self.client.address())))
    }

    /// The transaction for etcd: as it was asked for, if this client has done none since its last one; it leaves `nonce` in the receipt.
    fn request(&self, compares: &[Compare<'_>], ops: &[Op<'_>]) -> TxnRequest {
        let compare = |compare: &Compare<'_>| CompareRevision::new(&self.entry_key(compare.key), compare.version);
        let op = |op: &Op<'_>| match *op {
            Op::Put { key, value, lease } => RequestOp::Put(PutRequest {
                key: Bytes::key(&self.entry_key(key)),
                value: Bytes(value.to_vec()),
                lease: lease.map(|lease| Number(lease.0)),
            }),
            Op::Delete { key } => {
                RequestOp::DeleteRange(RangeRequest { key: Bytes::key(&self.entry_key(key)), range_end: None })
            }
        };
        TxnRequest {
            compare: compares.iter().map(compare).collect(),
            success: ops.iter().map(op).collect(),
            failure: Vec::new(),
        }
    }

    fn keep(&self, lease: LeaseId) -> Result<bool, StoreError> {
        let kept: Streamed<LeaseResponse> =
            self.client.ask_until_answered(KEEP, &LeaseRequest { id: Number(lease.0) })?;
        match kept {
            Streamed { result: Some(kept), .. } => Ok(kept.ttl.0 > 0),
            Streamed { error, .. } => Err(self.client.unreachable(error.unwrap_or_default().text())),
        }
    }
}

impl Store for EtcdStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let found = self.range(key, None)?.kvs.into_iter().next();
        Ok(found.map(|kv| Entry { value: kv.value.0, version: kv.mod_revision.0 }))
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        check_prefix(prefix)?;
        let found = self.range(prefix, Some(end_of(prefix)))?;
        let entry = |kv: KeyValue| Ok((self.own_key(&kv)?, Entry { value: kv.value.0, version: kv.mod_revision.0 }));
        let entries = found.kvs.into_iter().map(entry).collect::<Result<_, StoreError>>()?;
        Ok(Listing { revision: found.header.revision.0, entries })
    }

    fn transact(&self, compares: &[Compare<'_>], ops: &[Op<'_>]) -> Result<Outcome, StoreError> {
        check_transaction(compares, ops)?;
        let mut request = self.request(compares, ops);
        if ops.is_empty() {
            // One that reads nothing either would be answered by a member alone, from what it knows.
            let read = RangeRequest { key: Bytes::key(&self.entry_key("")), range_end: None };
            request.success.push(RequestOp::Range(read.clone()));
            request.failure.push(RequestOp::Range(read));
            let answer: TxnResponse = self.client.ask_until_answered(TXN, &request)?;
            let revision = answer.header.revision.0;
            return Ok(if answer.succeeded { Outcome::Done { revision } } else { Outcome::Conflict });
        }
        if self.client.seen().is_in_doubt() {
            // What answers now may have been restored from an older copy: that is looked for before anything is changed in it.
            self.range("", None)?;
        }
        let mut current = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut session = match current.take() {
                Some(session) => session,
                None => Session::begin(self)?,
            };
            match session.make_certain(&self.client) {
                Ok(()) => {}
                Err(StoreError::LeaseEnded) => continue,
                Err(error) => {
                    *current = Some(session);
                    return Err(error);
                }
            }
            if !session.is_fresh() && !session.keep(self)? {
                continue;
            }
            match session.transact(&self.client, &request) {
                // Which lease?
                Err(StoreError::LeaseEnded) if !session.keep(self)? => {}
                result => {
                    *current = Some(session);
                    return result;
                }
            }
        }
    }

    /// A write whose condition never holds: all members agree upon it, and etcd refuses it as it would any other write, but no revision comes of it.
    fn check_writable(&self) -> Result<(), StoreError> {
        let nobodys = self.client.receipts();
        let put = PutRequest { key: Bytes::key(&nobodys), value: Bytes::default(), lease: None };
        let request = TxnRequest {
            compare: vec![CompareRevision::new(&nobodys, u64::from(u32::MAX))],
            success: vec![RequestOp::Put(put)],
            failure: Vec::new(),
        };
        self.client.ask_until_answered::<TxnResponse>(TXN, &request).map(drop)
    }

    fn watch(&self, prefix: &str, since: u64, timeout: Duration) -> Result<Changes, StoreError> {
        check_prefix(prefix)?;
        let until = Instant::now() + timeout;
        let streams = || self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open = streams().remove(prefix).filter(|stream| stream.revision() <= since);
        let mut patience = self.client.patience();
        loop {
            let mut stream = match open.take() {
                Some(stream) => stream,
                None => match Stream::open(&self.client, &self.entries, prefix, since) {
                    Ok(Opened::Stream(stream)) => stream,
                    Ok(Opened::Compacted) => return Ok(Changes::Compacted),
                    // It knows of less than there was: perhaps it is only behind.
                    Ok(Opened::FromTheFuture) if self.range("", None)?.header.revision.0 < since => {
                        return Ok(Changes::Compacted);
                    }
                    Ok(Opened::FromTheFuture) if Instant::now() >= until => {
                        return Ok(Changes::Seen { revision: since, changes: Vec::new() });
                    }
                    Ok(Opened::FromTheFuture) => {
                        std::thread::sleep(Duration::from_millis(10));
                        continue;
                    }
                    Err(CallError::Refused(problem)) => return Err(self.client.explain(&problem)),
                    Err(CallError::Ambiguous(why)) if !patience.is_left() => return Err(self.client.unreachable(&why)),
                    Err(CallError::Ambiguous(_)) => continue,
                },
            };
            let changes = match stream.wait(since, until.saturating_duration_since(Instant::now())) {
                Waited::Changes(changes) => changes,
                Waited::Compacted => return Ok(Changes::Compacted),
                Waited::Ended if Instant::now() < until => {
                    // A member may end one as soon as it has begun, again and again.
                    self.client.pause(until);
                    continue;
                }
                Waited::Ended | Waited::Nothing => Vec::new(),
            };
            let revision = stream.revision();
            if !stream.has_ended() {
                streams().insert(prefix.to_owned(), stream);
            }
            return Ok(Changes::Seen { revision, changes });
        }
    }

    fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        // A lease that was granted without our learning of it ends by itself.
        let ttl = Number(ttl.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX));
        let granted: LeaseResponse = self.client.ask_until_answered(GRANT, &GrantRequest { ttl })?;
        Ok(LeaseId(granted.id.0))
    }

    fn keep_lease(&self, lease: LeaseId) -> Result<bool, StoreError> {
        self.keep(lease)
    }

    /// A session that has begun, a connection that is open, to a member that answers.
    fn keep_ready(&self) -> Result<(), StoreError> {
        self.client.prefer_first();
        self.client.renew_token()?;
        let mut current = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = match current.as_mut().map(|session| session.is_good(self)) {
            Some(Err(StoreError::LeaseEnded)) | None => false,
            Some(is_good) => is_good?,
        };
        if !is_good {
            *current = Some(Session::begin(self)?);
        }
        Ok(())
    }

    fn sight(&self) -> Option<Sight> {
        self.client.seen().sight()
    }

    fn end_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.client.ask_until_answered::<Done>(REVOKE, &LeaseRequest { id: Number(lease.0) }) {
            Ok(_) | Err(StoreError::LeaseEnded) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
