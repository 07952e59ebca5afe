"""The constants of JPEG: ITU-T T.81 (quantiser), libjpeg (transform) and JFIF (colours)."""

# T.81 Annex K, tables K.1 and K.2: quantisation steps at quality 50. Rows are vertical frequencies.
LUMA_STEPS = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
CHROMA_STEPS = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
    [99, 99, 99, 99, 99, 99, 99, 99],
]

# The left half of libjpeg's `islow` DCT (Loeffler, Ligtenberg, Moschytz, 1989): the integers that
# its multipliers of 13 bits add up to, 8192 sqrt(8) times the orthonormal DCT-II. The right half
# mirrors the left one: even rows are even functions, odd rows are odd ones.
ISLOW_LEFT_HALF = [
    [8192, 8192, 8192, 8192],
    [11363, 9633, 6437, 2260],
    [10703, 4433, -4433, -10703],
    [9633, -2259, -11362, -6436],
    [8192, -8192, -8192, 8192],
    [6437, -11362, 2261, 9633],
    [4433, -10704, 10704, -4433],
    [2260, -6436, 9633, -11363],
]

# JFIF's colour transform and its inverse, in units of 1/65536, each entry rounded as in libjpeg.
RGB_TO_YCC = [[19595, 38470, 7471], [-11059, -21709, 32768], [32768, -27439, -5329]]
YCC_TO_RGB = [[65536, 0, 91881], [65536, -22554, -46802], [65536, 116130, 0]]
