// How the threads of a batch share it: by rows, or by the columns of products.
#pragma once
#include "abi.h"
#include "kernel/linear.h"

namespace bei {

constexpr int kLeastRows = 24;  // that are worth a thread of their own

// The rows of a range, for two ranges to each thread; a multiple of the rows of a kernel.
int range_size(int row_count, int threads, int kernel_rows);

// The sharing of a batch of so many tokens that takes the least time, by an estimate. `threads` are those at hand. More rows
// than one block has are shared by rows.
BeiSharing sharing_of(const BeiModel& model, const BeiMachine& machine, int tokens, int threads);

}  // namespace bei
