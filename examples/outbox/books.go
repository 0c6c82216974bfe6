package main

import (
	"context"
	"database/sql"
	"errors"

	_ "modernc.org/sqlite" // the driver

	ackpolicy "github.com/ackpolicy/watermill-ackpolicy"
)

// A row of the outbox says that a record is booked, and has what is to be published for it. It is written in the
// transaction of the business data. The key of the record is its place in Kafka, which never changes. Rows may be
// deleted once the group's offset is behind them.
//
// The table of bookings has no unique key on purpose: an order that is booked twice would be there twice.
const schema = `
CREATE TABLE IF NOT EXISTS outbox (
	topic TEXT, part INTEGER, pos INTEGER, output BLOB NOT NULL, repeats INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (topic, part, pos)
);
CREATE TABLE IF NOT EXISTS bookings (id INTEGER);
CREATE TABLE IF NOT EXISTS stock (item INTEGER PRIMARY KEY, pieces INTEGER NOT NULL);`

type books struct{ db *sql.DB }

type transaction struct {
	*sql.Tx
	ctx context.Context
}

func openBooks(file string) (*books, error) {
	// synchronous(NORMAL) survives the end of the process. Only FULL also survives that of the machine.
	db, err := sql.Open("sqlite", "file:"+file+"?_txlock=immediate&_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)")
	if err != nil {
		return nil, err
	}
	if _, err := db.Exec(schema); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	db.SetMaxOpenConns(1) // SQLite has one writer
	return &books{db}, nil
}

// once calls do for a record that is not booked yet, and stores its output in the same transaction. For one that is
// booked it returns the output from then.
func (b *books) once(ctx context.Context, d *ackpolicy.Delivery, do func(*transaction) ([]byte, error)) (output []byte, err error) {
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback()
		}
	}()
	err = tx.QueryRowContext(ctx, "UPDATE outbox SET repeats = repeats + 1 WHERE topic = ? AND part = ? AND pos = ? RETURNING output",
		d.Topic(), d.Partition(), d.Offset()).Scan(&output)
	switch {
	case err == nil:
		return output, tx.Commit()
	case !errors.Is(err, sql.ErrNoRows):
		return nil, err
	}
	if output, err = do(&transaction{tx, ctx}); err != nil {
		return nil, err
	}
	if _, err = tx.ExecContext(ctx, "INSERT INTO outbox (topic, part, pos, output) VALUES (?, ?, ?, ?)",
		d.Topic(), d.Partition(), d.Offset(), output); err != nil {
		return nil, err
	}
	return output, tx.Commit()
}

// take books an order, and returns what is left of its item.
func (tx *transaction) take(o order) (left int, err error) {
	if _, err := tx.ExecContext(tx.ctx, "INSERT INTO bookings (id) VALUES (?)", o.ID); err != nil {
		return 0, err
	}
	return left, tx.QueryRowContext(tx.ctx, `INSERT INTO stock (item, pieces) VALUES (?, ?)
		ON CONFLICT (item) DO UPDATE SET pieces = pieces + excluded.pieces RETURNING pieces`, o.Item, -o.Pieces).Scan(&left)
}
