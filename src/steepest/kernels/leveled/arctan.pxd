"""arctan by + - * / and comparisons alone, hence with the same bits everywhere."""
from steepest.kernels.contract cimport magnitude, real


cdef inline real arctan2(real y, real x) noexcept nogil:
    """arctan(y / x) for x >= 0, up to ±π/2 at x = 0; 0 for 0 / 0. Within 3 units of the last place.

    Exchanging the two, and turning by π/4, bring the quotient q into [-tan π/8, tan π/8]; there
    (arctan q - q) / q³ is a polynomial in q², interpolated at Chebyshev's nodes; arctan q then
    lacks at most 4e-17 of itself, 3e-9 in float. `turned` is not asked again at the end: GCC would
    compile what lies between once for each answer, and do all of it for every element.
    """
    cdef real size = magnitude(y)
    cdef bint steep = size > x
    cdef real small = x if steep else size, large = size if steep else x
    cdef bint turned = small > <real>0.41421356237309503 * large
    cdef real top = small - large if turned else small
    cdef real bottom = small + large if turned else large
    cdef real turn = <real>0.7853981633974483 if turned else <real>0
    cdef real q = top / (<real>2 if large == <real>0 else bottom), z = q * q
    cdef real sum
    if real is float:
        sum = <real>-0.06451928208121749
        sum = sum * z + <real>0.10743731490791084
        sum = sum * z + <real>-0.1426395559798464
        sum = sum * z + <real>0.19999540483648964
        sum = sum * z + <real>-0.3333333176116852
    else:
        sum = <real>0.021135371536498415
        sum = sum * z + <real>-0.04348052083340628
        sum = sum * z + <real>0.056883491809884175
        sum = sum * z + <real>-0.06640233921673451
        sum = sum * z + <real>0.07689953495298942
        sum = sum * z + <real>-0.0909077307473686
        sum = sum * z + <real>0.11111106180452865
        sum = sum * z + <real>-0.14285714180976392
        sum = sum * z + <real>0.19999999998855109
        sum = sum * z + <real>-0.3333333333332844
    cdef real angle = (q + q * (z * sum)) + turn
    angle = <real>1.5707963267948966 - angle if steep else angle
    return -angle if y < <real>0 else angle
