#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = SEED;

static uint64_t next(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return state >> 33;
}

static int compare(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

int main(void)
{
    uint64_t table[512], sum = 0, bits;
    double quotient = 1;
    for (int i = 0; i < 512; i++)
        table[i] = next();
    qsort(table, 512, sizeof table[0], compare);
    for (int i = 0; i < 512; i++) {
        sum = sum * 31 + table[i];
        quotient = quotient / 3 + (double)table[i] / (i + 1);
    }
    memcpy(&bits, &quotient, sizeof bits);
    printf("%llu %llu\n", (unsigned long long)sum, (unsigned long long)bits);
}
