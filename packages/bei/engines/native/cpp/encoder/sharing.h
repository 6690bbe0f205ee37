// How the threads of a batch share it: by rows, or by the columns of products.
#pragma once
#include "abi.h"
#include "kernel/linear.h"

namespace bei {

constexpr int kLeastRows = 24;  // that are worth a thread of their own

// Rows for which a thread reads all matrices once more: fewer would wait for them, with tiles.
constexpr int kWorthReading = kMultipliesTiles ? 96 : kLeastRows;

// The rows of a range, for two ranges to each thread if these are worth reading for, else for one; a multiple of the rows of
// a kernel.
int range_size(int row_count, int threads, int kernel_rows);

// The sharing of a batch of so many tokens that takes the least time, by an estimate. `threads` are those at hand. More rows
// than one block has are shared by rows.
BeiSharing sharing_of(const BeiModel& model, const BeiMachine& machine, int tokens, int threads);

}  // namespace bei
