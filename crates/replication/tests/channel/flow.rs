//! Frames, and the end of a connection.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use replication::channel::{self, ChannelError, PAYLOAD_BYTES_MAX};

use crate::{Keys, LONG, is_closed, listen, pair};

#[test]
fn frames_arrive_whole_and_in_order() {
    let (a, b) = pair();
    let ((mut send, _, _), (_, mut receive, _)) = (a.split(), b.split());
    let lens = [0, 1, 100, 16_384, 70_000, PAYLOAD_BYTES_MAX, 3];
    let sending = thread::spawn(move || {
        for round in 0..20_u8 {
            for len in lens {
                let payload: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(7) ^ round).collect();
                let (head, tail) = payload.split_at(len / 3);
                send.send(round, &[head, tail]).unwrap();
            }
        }
        send.flush().unwrap();
        send
    });
    for round in 0..20_u8 {
        for len in lens {
            let frame = receive.recv(Some(LONG)).unwrap().unwrap();
            assert_eq!((frame.kind, frame.payload.len()), (round, len));
            assert!(frame.payload.iter().enumerate().all(|(at, &byte)| byte == (at as u8).wrapping_mul(7) ^ round));
        }
    }
    assert!(receive.recv(Some(Duration::from_millis(10))).unwrap().is_none());
    drop(sending.join().unwrap());
}

#[test]
fn a_frame_that_is_too_long_is_refused_and_the_next_one_arrives() {
    let (a, b) = pair();
    let ((mut send, _, _), (_, mut receive, _)) = (a.split(), b.split());
    assert!(matches!(send.send(1, &[&vec![0; PAYLOAD_BYTES_MAX + 1]]), Err(ChannelError::TooLong(_))));
    send.send(2, &[b"short"]).unwrap();
    send.flush().unwrap();
    assert_eq!(receive.recv(Some(LONG)).unwrap().unwrap().payload, b"short");
}

/// Both sides send more than sockets hold before either reads what has come: if a lock were held over a write that waits, nobody
/// could read.
#[test]
fn both_directions_may_be_full_at_once() {
    let (a, b) = pair();
    let ends = [a, b].map(|end| {
        thread::spawn(move || {
            let (mut send, mut receive, _closer) = end.split();
            let sending = thread::spawn(move || {
                let payload = vec![0x5a; PAYLOAD_BYTES_MAX];
                for _ in 0..64 {
                    send.send(9, &[&payload]).unwrap();
                }
                send.flush().unwrap();
                send
            });
            thread::sleep(Duration::from_millis(200));
            for _ in 0..64 {
                assert_eq!(receive.recv(Some(LONG)).unwrap().unwrap().payload.len(), PAYLOAD_BYTES_MAX);
            }
            (sending.join().unwrap(), receive)
        })
    });
    let _open = ends.map(|end| end.join().unwrap());
}

#[test]
fn closing_wakes_whoever_sends_or_receives_on_both_sides() {
    let (a, b) = pair();
    let ((mut a_send, mut a_receive, closer), (mut b_send, mut b_receive, _)) = (a.split(), b.split());
    let waiting = [
        thread::spawn(move || is_closed(a_receive.recv(None))),
        thread::spawn(move || {
            let payload = vec![0; PAYLOAD_BYTES_MAX];
            // Nobody reads: it comes to wait.
            is_closed((0..).try_for_each(|_| a_send.send(1, &[&payload])))
        }),
    ];
    thread::sleep(Duration::from_millis(100));
    closer.close();
    for thread in waiting {
        assert!(thread.join().unwrap());
    }
    // What was sent before may still arrive.
    let end = loop {
        match b_receive.recv(Some(LONG)) {
            Ok(frame) => assert!(frame.is_some(), "the end did not arrive"),
            Err(error) => break error,
        }
    };
    assert!(matches!(end, ChannelError::Closed), "{end}");
    assert!(is_closed((0..1000).try_for_each(|_| b_send.send(1, &[&[0; 1000]]).and_then(|()| b_send.flush()))));
}

#[test]
fn a_killed_peer_is_noticed_at_once_and_what_it_had_sent_counts() {
    let (a, b) = pair();
    let (mut send, receive, closer) = a.split();
    send.send(1, &[b"last words"]).unwrap();
    send.flush().unwrap();
    drop((send, receive, closer));
    let (_, mut receive, _) = b.split();
    assert_eq!(receive.recv(Some(LONG)).unwrap().unwrap().payload, b"last words");
    assert!(is_closed(receive.recv(None)));
    assert!(is_closed(receive.recv(None)));
}

/// A machine in the middle that changes a byte of what is on the wire.
#[test]
fn tampering_is_noticed() {
    let keys = Keys::new();
    let (a, b) = (keys.identity("a"), keys.identity("b"));
    let (listener, address) = listen(&b);
    let middle = TcpListener::bind("127.0.0.1:0").unwrap();
    let middle_address = middle.local_addr().unwrap();
    thread::spawn(move || {
        let (mut from, _) = middle.accept().unwrap();
        let mut to = TcpStream::connect(address).unwrap();
        let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
        let mut buffer = vec![0; 1 << 16];
        let mut passed = 0;
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            // Well after the handshake, and not in what TLS ignores: the version in a record's header.
            if passed < 100_000 && passed + read >= 100_000 {
                buffer[read - 1] ^= 1;
            }
            passed += read;
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
    let accepting = thread::spawn(move || listener.accept());
    let (mut send, _, _) = channel::connect(middle_address, &a, "b", LONG).unwrap().split();
    let (_, mut receive, _) = accepting.join().unwrap().unwrap().split();
    let sending =
        thread::spawn(move || (0..300).try_for_each(|_| send.send(3, &[&[7; 1000]]).and_then(|()| send.flush())));
    let mut whole = 0;
    let error = loop {
        match receive.recv(Some(LONG)) {
            Ok(Some(frame)) => {
                assert_eq!((frame.kind, frame.payload), (3, &[7; 1000][..]));
                whole += 1;
            }
            Ok(None) => panic!("neither data nor an error"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ChannelError::Tls(_)), "{error} after {whole} frames");
    assert!(whole > 0);
    drop(receive);
    // It may have ended before or after the connection did.
    let _ = sending.join().unwrap();
}
